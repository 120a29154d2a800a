"""What the module of another package may do when it is loaded."""

raise SystemExit(3)
