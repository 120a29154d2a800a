"""Recovery and stop of one VM. Sent by hand, to the default queue, `recover_vm(vm_id)` is a person's request."""

from typing import Any

from workers import queues
from workers.app import app
from workers.bootstrap_host import host_runtime
from workers.crashpoints import Point, reach
from workers.domain.recovery import WakeUp
from workers.domain.vm import Force
from workers.services.recovery import ForHost, Result, RetryIn
from workers.tasks.arguments import BadArgument, choice_of, count_of, number_of, refused, text_of, vm_id_of

SYSTEM, MANUAL = "system", "manual"


@app.task(throws=(BadArgument,), name=queues.RECOVER_VM, bind=True, send_events=True, max_retries=None)  # type: ignore[untyped-decorator] # Celery is untyped
def recover_vm(
    self: Any,
    vm_id: str,
    *,
    episode: str | None = None,
    attempt: int | None = None,
    request_id: str | None = None,
    actor: str | None = None,
    origin: str = MANUAL,
    tries: int = 0,
    force: str = Force.PLAIN,
) -> str:
    """Bring this VM back, if it needs it. Repeats of one request act once: by `request_id`, else by the task's id.

    `force` is what a person's request overrides; no other has any.
    """
    checked = vm_id_of(vm_id)
    by_hand = text_of(origin, "origin") != SYSTEM
    wake = WakeUp(
        episode=text_of(episode, "episode"),
        attempt=number_of(attempt, "attempt"),
        request_id=(text_of(request_id, "request_id") or str(self.request.root_id)) if by_hand else None,
        actor=text_of(actor, "actor") or (MANUAL if by_hand else "recovery"),
        tries=count_of(tries, "tries"),
        force=_force_of(force, by_hand=by_hand),
    )
    return _follow(self, checked, host_runtime().recover(checked, wake))


@app.task(throws=(BadArgument,), name=queues.STOP_VM, bind=True, send_events=True, max_retries=None)  # type: ignore[untyped-decorator] # Celery is untyped
def stop_vm(self: Any, vm_id: str) -> str:
    """Bring down a VM whose record says that it is to be stopped."""
    checked = vm_id_of(vm_id)
    return _follow(self, checked, host_runtime().stop(checked))


def _force_of(value: object, *, by_hand: bool) -> Force:
    force = choice_of(value, "force", Force)
    if force is not Force.PLAIN and not by_hand:
        raise refused("force", "only a person's request may have any")
    return force


def _follow(task: Any, vm_id: str, result: Result) -> str:
    match result:
        case ForHost(host):
            arguments = dict(task.request.kwargs)
            if task.name == queues.RECOVER_VM and arguments.get("origin") != SYSTEM:
                arguments.setdefault("request_id", str(task.request.root_id))
            task.apply_async(args=[vm_id], kwargs=arguments, queue=queues.recovery(host))
        case RetryIn(wait_ms, wake, why):
            # Attempt and time of the next one stand in the record already: this message may be lost.
            reach(Point.BEFORE_RETRY)
            again = task.retry(
                args=[vm_id],
                kwargs=_arguments(wake),
                countdown=max(0, wait_ms) / 1000,
                queue=queues.recovery(host_runtime().host).name,
                throw=False,
            )
            reach(Point.AFTER_RETRY)
            raise again from RuntimeError(why)
        case _:
            pass
    return str(result)


def _arguments(wake: WakeUp) -> dict[str, Any]:
    if wake.is_manual:
        arguments = {"request_id": wake.request_id, "actor": wake.actor, "tries": wake.tries}
        # A worker of the release before does not know the word.
        return arguments if wake.force is Force.PLAIN else arguments | {"force": str(wake.force)}
    return {
        "episode": wake.episode,
        "attempt": wake.attempt,
        "actor": wake.actor,
        "origin": SYSTEM,
        "tries": wake.tries,
    }
