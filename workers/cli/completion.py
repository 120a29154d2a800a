"""`completion`: what a shell needs to complete commands, options, and the names of VMs, hosts and breakers."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from click.shell_completion import CompletionItem, get_completion_class

from workers.settings import load
from workers.store.client import connect
from workers.store.hosts import HostRegistry
from workers.store.keys import Keys
from workers.store.weather import Weather

if TYPE_CHECKING:
    import redis

_SHELLS = ("bash", "zsh", "fish")
_PROGRAM, _VARIABLE = "reliability", "_RELIABILITY_COMPLETE"
_PATIENCE_S = 0.25  # for connecting, and for one answer: together half a second, or nothing is offered
_MOST = 500


@click.command()
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete commands and names.

    bash: reliability completion bash > ~/.local/share/bash-completion/completions/reliability

    zsh: reliability completion zsh > a file named _reliability in a folder of $fpath

    fish: reliability completion fish > ~/.config/fish/completions/reliability.fish

    Names of VMs and hosts are asked from Redis; where it does not answer at once, none are offered.
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"no completion for {shell}", click.get_current_context())
    root = click.get_current_context().find_root().command
    script = made(root, {}, _PROGRAM, _VARIABLE)
    click.echo(script.source_template % script.source_vars())


def names(kind: str, incomplete: str, taken: Collection[str]) -> list[CompletionItem]:
    """Return what may stand here. Says nothing, whatever goes wrong: it would stand in the middle of a prompt."""
    try:
        found = _asked(_SOURCES[kind])
    except Exception:  # noqa: BLE001 - see above
        return []
    fitting = sorted(name for name in found if name.startswith(incomplete) and name not in taken)
    return [CompletionItem(name) for name in fitting[:_MOST]]


def _asked(ask: "Callable[[redis.Redis, str], Iterable[str]]") -> Iterable[str]:
    settings = load(os.environ, Path.cwd()).settings
    client = connect(settings.redis.url.get_secret_value(), timeout_s=_PATIENCE_S, connect_timeout_s=_PATIENCE_S)
    return ask(client, settings.redis.prefix)


def _vms(client: "redis.Redis", prefix: str) -> Iterable[str]:
    return [vm_id.decode() for vm_id in cast("set[bytes]", client.smembers(Keys(prefix).vms))]


def _hosts(client: "redis.Redis", prefix: str) -> Iterable[str]:
    return [host.name for host in HostRegistry(client, prefix=prefix).all()[1]]


def _breakers(client: "redis.Redis", prefix: str) -> Iterable[str]:
    return [breaker.scope for breaker in Weather(client, prefix=prefix).breakers()]


_SOURCES: "Mapping[str, Callable[[redis.Redis, str], Iterable[str]]]" = {
    "vm": _vms,
    "host": _hosts,
    "breaker": _breakers,
}
