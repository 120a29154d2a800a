"""`reliability bench`: what checks, deaths and hangs cost and take on this host, and what to do about it."""

from workers.bench.command import run

__all__ = ["run"]
