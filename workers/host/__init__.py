"""Processes and files of this host: who lives, who holds which lock, start, stop, watch."""
