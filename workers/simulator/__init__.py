"""A fleet in one process under a clock of its own: the real decisions and services, all around them fake."""
