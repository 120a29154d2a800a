"""Drivers and probes of the VMMs, and the stand-in that takes the place of one where there is no KVM."""
