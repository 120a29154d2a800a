"""What operators see of us."""
