"""Runs all benchmarks, one after the other, and shows all figures in one table, beside what was kept of earlier runs.

Each is a process of its own and writes its document into one folder; one that fails is told, and the others go on.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Figure, table
from tests.benchmarks.ratios import TOLERANCE, Unusable, figures_of, read_documents, read_kept, report
from tests.benchmarks.stage import ended_by_signals, say

_HERE = Path(__file__).resolve().parent
FOLDER = _HERE.parents[1] / "build" / "benchmarks"  # not in git
_LONGEST_S = 1200.0
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Run:
    """One benchmark with its options; `quick` are added where only a first look is wanted.

    `variant` tells a run with other options than the benchmark's own from the plain one.
    """

    script: str
    quick: Sequence[str] = ()
    options: Sequence[str] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.script, self.variant)))

    @property
    def path(self) -> Path:
        return _HERE / f"{self.script}.py"

    def command(self, out: Path, *, quick: bool) -> list[str]:
        return [sys.executable, str(self.path), *self.options, *(self.quick if quick else ()), "--json", str(out)]


RUNS: Sequence[Run] = (
    Run("check_path", ("--vms", "100", "--seconds", "4", "--rate", "1000")),
    Run("deaths", ("--vms", "100", "--standins", "8", "--deaths", "10", "--runs", "1", "--watched", "500")),
    Run("peers", ("--deaths", "4", "--slow-deaths", "2", "--rounds", "1", "--again", "1", "--at-once", "20")),
    Run("beat_scale", ("--middle", "2000", "--large", "5000", "--seconds", "5", "--interval", "5", "--kills", "1")),
    Run("fleet_in_a_box", ("--sizes", "500,2000", "--interval", "5", "--settle", "6", "--seconds", "6")),
    Run("hangs", ("--vms", "50", "--hangs", "5", "--seconds", "5", "--profile", "fast")),
    Run("footprint", ("--vms", "100", "--most", "0", "--restarts", "1", "--seconds", "5")),
    Run("storm", ("--hurt", "40", "--unhurt", "10", "--waves", "1")),
    Run("storm", ("--hurt", "20", "--unhurt", "10", "--waves", "1"), ("--hurt", "200"), "200 hurt"),
    Run("admission", ("--seconds", "3", "--many", "100")),
    Run("hooks", ("--vms", "30")),
    Run("fleet_page", ("--vms", "500", "--events", "2000", "--seconds", "3", "--browsers", "3")),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """`problem` is empty when the benchmark ended well and wrote its document to `out`."""

    run: Run
    out: Path
    seconds: float
    problem: str = ""


def execute(run: Run, folder: Path, *, quick: bool) -> Ended:
    """Run one to its end; what it prints goes to a log beside its document. On Ctrl-C it may end what it started."""
    out = folder / f"{'-'.join([run.path.stem, *run.variant.split()])}.json"
    log = out.with_suffix(".log")
    out.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            run.command(out, quick=quick), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        problem = _outcome(process)
    seconds = time.monotonic() - began
    if not problem:
        problem = _named(out, run, quick=quick)
    return Ended(run, out, seconds, f"{problem}; {log}:\n{_tail(log)}" if problem else "")


def _outcome(process: subprocess.Popen[bytes]) -> str:
    try:
        status = process.wait(_LONGEST_S)
    except subprocess.TimeoutExpired:
        return f"not done after {_LONGEST_S:.0f} s"
    finally:
        _end(process)
    return f"status {status}" if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """On Ctrl-C a benchmark ends what it started; if it does not, all of its session goes the hard way."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _named(out: Path, run: Run, *, quick: bool) -> str:
    """Write into the document which of several runs of one benchmark it is; returns what is wrong with it."""
    try:
        document = json.loads(out.read_text(encoding="utf-8"))
        if document["bench"] != run.path.stem:
            return f"calls itself {document['bench']!r} in its document"
        more = {"variant": run.variant} | ({"quick": True} if quick else {})
        out.write_text(json.dumps(document | more, indent=2) + "\n", encoding="utf-8")
        read_documents([out])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"wrote no document ({error})"
    except Unusable as error:
        return str(error)
    return ""


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines)


def all_figures(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[Figure]:
    """Name each by its benchmark too."""
    for name, document in documents.items():
        for figure in figures_of(document):
            yield replace(figure, name=f"{name}: {figure.name}")


def run_all(runs: Sequence[Run], folder: Path, *, quick: bool) -> list[Ended]:
    folder.mkdir(parents=True, exist_ok=True)
    ended: list[Ended] = []
    for number, run in enumerate(runs, start=1):
        say(f"{number}/{len(runs)} {run.name} …")
        ended.append(execute(run, folder, quick=quick))
        say(f"{number}/{len(runs)} {run.name}: {'FAILED' if ended[-1].problem else 'done'}, {ended[-1].seconds:.0f} s")
    return ended


def tell(ended: Sequence[Ended], *, quick: bool) -> bool:
    """Print all that was found; returns whether all is well."""
    documents = read_documents(each.out for each in ended if not each.problem)
    if documents:
        print(table(list(all_figures(documents))))
        print()
    is_well = True
    if quick:
        print("quick: with few VMs and short runs, neither limits nor ratios mean much; nothing is compared")
    elif documents:
        text, is_well = report(read_kept(), documents, TOLERANCE)
        print(text)
    failed = [each for each in ended if each.problem]
    for each in failed:
        print(f"{each.run.name} FAILED: {each.problem}")
    print(f"{len(ended) - len(failed)} of {len(ended)} benchmarks ran")
    return is_well and not failed


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    wanted = [run for run in RUNS if not options.only or {run.script, run.name} & set(options.only)]
    # Or it would be ignored where we run in the background, here and in all benchmarks.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ended_by_signals():
        try:
            ended = run_all(wanted, options.folder, quick=options.quick)
        except KeyboardInterrupt:
            say("interrupted; what was measured so far is in " + str(options.folder))
            return 130
    return 0 if tell(ended, quick=options.quick) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = list(dict.fromkeys(name for run in RUNS for name in (run.script, run.name)))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"these alone: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="few VMs and short runs: does each still work?")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where documents and logs go (build/benchmarks)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
