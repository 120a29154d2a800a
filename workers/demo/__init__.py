"""`reliability demo`: a whole fleet on this machine, faults done to it, and a report of what came of them."""

from workers.demo.command import run

__all__ = ["run"]
