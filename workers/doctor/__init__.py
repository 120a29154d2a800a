"""Looks for what would keep a host or the fleet from working, and collects what a person who helps needs."""
