"""What is decided, as values and pure functions: no I/O, no clock, no randomness; standard library only."""
