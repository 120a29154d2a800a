"""The host's own word against stale attempts: a generation that was begun is never begun again, and none below it."""

from workers.domain.errors import StaleGeneration


def check_generation(vm_id: str, asked: int, seen: int) -> None:
    """To be called under the VM's lock; `seen` is the highest generation ever begun here. Raises StaleGeneration."""
    if asked <= seen:
        raise StaleGeneration(vm_id, asked, seen)
