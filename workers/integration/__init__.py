"""For whoever writes a VM manager: tell of VMs, ask how they are, hear of changes (docs/integration.md)."""

from workers.domain.vm import Force
from workers.integration.hooks import AttemptSeen, Hooks, Operation, VmHealth, VmmProcess
from workers.integration.manager import ReliabilityManager

__all__ = ["AttemptSeen", "Force", "Hooks", "Operation", "ReliabilityManager", "VmHealth", "VmmProcess"]
