"""What happens next to a VM: by whom, when, and where only a person can go on, what to do. Pure."""

from collections.abc import Sequence

from workers.domain.answer import (
    Next,
    Who,
)
from workers.domain.hindrances import Block, Facts
from workers.domain.recovery import needs_attempt
from workers.domain.vm import Desired, State
from workers.domain.words import at_time, clock, lasting

_OVERDUE = 2  # intervals without the check that was due: no beat sends any


def next_step(facts: Facts, blocks: Sequence[Block]) -> Next:
    """Say what happens next, by whom and when; where only a person can go on, what to do."""
    record = facts.record
    if record.desired is Desired.STOPPED:
        return _stop(facts, blocks)
    if record.state is State.FAILED:
        todo = f"mend it, then `reliability recover {record.vm_id}`, or `reliability reset {record.vm_id}`"
        return Next("nothing", Who.PERSON, f"nothing by itself: a person is asked: {todo}", do=todo)
    if record.attempt_running:
        return _attempt_ends(facts, blocks)
    if needs_attempt(record) and (record.process is None or record.state is not State.STARTING):
        return _attempt(facts, blocks)
    return _look(facts, blocks)


def _stop(facts: Facts, blocks: Sequence[Block]) -> Next:
    record = facts.record
    if record.state is State.STOPPED:
        todo = "apply it with `desired: running` to start it"
        return Next("nothing", Who.NOBODY, f"nothing: it is to be stopped; {todo}", do=todo)
    # Breakers, lines and the recovery flag are for what starts VMs.
    if blocked := _by_person([block for block in blocks if block.finding.kind in ("worker", "halted", "mode")]):
        return blocked
    if (until_ms := _held_until(blocks, kinds=("mode",))) > facts.now_ms:
        return Next("stop", Who.WORKER, f"it is stopped, not before {clock(until_ms)}", at_ms=until_ms)
    within = facts.rules.detection_interval_ms // 1000
    return Next("stop", Who.WORKER, f"its host's worker stops it, at the latest within {within}s")


def _attempt_ends(facts: Facts, blocks: Sequence[Block]) -> Next:
    episode = facts.record.open_episode
    number = episode.attempt if episode else 0
    if facts.lease_owner is not None:
        until = f"; should its worker die, the lease ends {at_time(facts.lease_until_ms, facts.now_ms)}"
        words = f"attempt {number} ends by itself{until}"
        return Next("attempt_ends", Who.WORKER, words, at_ms=facts.lease_until_ms or None)
    if blocked := _by_person([block for block in blocks if block.finding.kind in ("worker", "halted")]):
        return blocked
    within = facts.rules.detection_interval_ms // 1000
    words = f"attempt {number} has nobody behind it any more: the next sweep takes it up, within {within}s"
    return Next("sweep", Who.WORKER, words)


def _attempt(facts: Facts, blocks: Sequence[Block]) -> Next:
    now_ms, policy = facts.now_ms, facts.rules.recovery
    episode = facts.record.open_episode
    if blocked := _by_person(blocks):
        return blocked
    if episode is not None and policy.is_exhausted(episode):
        return Next("give_up", Who.WORKER, "no attempt is left: at the next sweep it is failed, and a person is asked")
    named = f"attempt {(episode.attempt if episode else 0) + 1} of {policy.max_retries}"
    backoff_ms = episode.next_attempt_ms if episode else 0
    held_ms = _held_until(blocks)
    if max(backoff_ms, held_ms) > now_ms:
        why = "" if backoff_ms >= held_ms else ", not sooner because of what is said above"
        at_ms = max(backoff_ms, held_ms)
        return Next("attempt", Who.WORKER, f"{named} {at_time(at_ms, now_ms)}{why}", at_ms=at_ms)
    if facts.is_called:
        return Next("attempt", Who.WORKER, f"{named} now: a slot is kept for it, its host has been told", at_ms=now_ms)
    if facts.queue is not None:
        return Next("attempt", Who.WORKER, f"{named} as soon as its turn comes in the line of {facts.queue.place}")
    within = facts.rules.detection_interval_ms // 1000
    return Next("attempt", Who.WORKER, f"{named} now; at the latest the next sweep begins it, within {within}s")


def _look(facts: Facts, blocks: Sequence[Block]) -> Next:
    now_ms, interval_ms = facts.now_ms, facts.rules.health.interval_ms
    looks = [block for block in blocks if block.looks]
    if blocked := _unseen(looks):
        return blocked
    if (held_ms := max((block.until_ms for block in looks), default=0)) > now_ms:
        return Next("check", Who.BEAT, f"it is looked at again {at_time(held_ms, now_ms)}", at_ms=held_ms)
    due_ms = facts.next_check_ms
    if due_ms is None:
        words = "no check is due: the next reconciliation puts it back into the schedule"
        return Next("check", Who.WORKER, words)
    if now_ms - due_ms > _OVERDUE * interval_ms:
        todo = "see whether a `reliability beat` runs"
        words = f"a check has been due for {lasting(due_ms, now_ms)}, and nobody has sent it: {todo}"
        return Next("check", Who.PERSON, words, at_ms=due_ms, do=todo)
    return Next("check", Who.BEAT, f"the next check {at_time(due_ms, now_ms)}", at_ms=due_ms)


def _by_person(blocks: Sequence[Block]) -> Next | None:
    """What ends only when somebody does something: all of it has to be done."""
    todo = "; ".join(block.do for block in blocks if block.until_ms == 0 and block.do and block.acts)
    return Next("nothing", Who.PERSON, f"nothing until a person acts: {todo}", do=todo) if todo else None


def _unseen(looks: Sequence[Block]) -> Next | None:
    """The same for looks; without checks the kernel still tells of deaths."""
    lasting_ones = [block for block in looks if block.until_ms == 0 and block.do]
    if not lasting_ones:
        return None
    todo = "; ".join(str(block.do) for block in lasting_ones)
    only_checks = {block.finding.kind for block in looks} <= {"flag", "setting"}
    words = "no check, only its death would be noticed," if only_checks else "nothing"
    return Next("nothing", Who.PERSON, f"{words} until a person acts: {todo}", do=todo)


def _held_until(blocks: Sequence[Block], *, kinds: Sequence[str] = ()) -> int:
    return max((b.until_ms for b in blocks if b.acts and (not kinds or b.finding.kind in kinds)), default=0)
