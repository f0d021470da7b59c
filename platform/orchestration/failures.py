"""Attempts that failed: what went wrong in one sentence, and whether trying again may help.

runs/NAME/
  failure.json       an error that trying again would only meet again: the run ends with it
  restarts.json      why the workers were started again, one entry for each time
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtura.platform.errors import MixturaError, from_plain, to_plain
from mixtura.platform.files import write_json_atomically
from mixtura.platform.orchestration.watchdog import Launch
from mixtura.platform.workspace import Run

_FAILURE, _RESTARTS = "failure.json", "restarts.json"
_LONGEST = 4000
MEMORY_RAN_OUT = "its machine ran out of memory"
# As Ray's memory monitor says it; of any process that was killed Ray says that it may have been the "OOM killer".
_HOST_MEMORY = re.compile(r"low on memory|OutOfMemoryError", re.IGNORECASE)
_NODE = re.compile(r"node has died|node was (terminated|removed|preempted)|NodeDied", re.IGNORECASE)
_PROCESS = re.compile(
    r"ActorDied|ActorUnavailable|actor (died|is dead|is temporarily)|worker.{0,40}died", re.IGNORECASE
)
_CONNECTION = re.compile(
    r"connection (was )?(closed|reset)|broken pipe|gloo|ProcessGroup|socket|nccl (remote|system) error", re.IGNORECASE
)


@dataclass(frozen=True)
class Restart:
    """Why the workers were started again, and the how-manieth time.

    Not all `number` times count among the `allowed` ones: a machine that a provider took back is no failure.
    """

    reason: str
    number: int
    counted: int
    allowed: int

    def going_on(self, step: int) -> str:
        """One line for a person.

        >>> Restart("the process of rank 1 died", 1, 1, 3).going_on(120)
        'attempt failed: the process of rank 1 died; going on from step 120, 2 of 3 restarts left'
        """
        left = max(0, self.allowed - self.counted)
        return f"attempt failed: {self.reason}; going on from step {step}, {left} of {self.allowed} restarts left"


# ---- what is left in the run's folder --------------------------------------------------------------------------------


def forget_failures(run: Run) -> None:
    """Before an attempt: what an earlier one met is over."""
    for name in (_FAILURE, _RESTARTS):
        (run.path / name).unlink(missing_ok=True)


def write_failure(run: Run, error: MixturaError) -> None:
    """Leave word of an error that trying again would only meet again."""
    write_json_atomically(run.path / _FAILURE, to_plain(error))


def has_failed(run: Run) -> bool:
    """Whether there is such an error."""
    return (run.path / _FAILURE).exists()


def raise_failure(run: Run) -> None:
    """Raise it, if there is one."""
    if has_failed(run):
        raise from_plain(json.loads((run.path / _FAILURE).read_text()))


def add_restart(run: Run, reason: str, errors: Mapping[int, BaseException]) -> None:
    """Write down that the workers failed. One process does so: the one that starts them again."""
    said = {rank: _text(error)[:_LONGEST] for rank, error in errors.items()}
    counts = not any(_was_taken_back(error) for error in errors.values())
    entry = {"reason": reason, "time_s": time.time(), "counts": counts, "errors": said}
    write_json_atomically(run.path / _RESTARTS, [*_restarts(run), entry])


def last_restart(run: Run, allowed: int) -> Restart | None:
    """Why the workers were last started again in this attempt."""
    entries = _restarts(run)
    if not entries:
        return None
    return Restart(str(entries[-1]["reason"]), len(entries), sum(bool(entry["counts"]) for entry in entries), allowed)


def _restarts(run: Run) -> list[dict[str, object]]:
    path = run.path / _RESTARTS
    return list(json.loads(path.read_text())) if path.exists() else []


def launch_name(attempt: int, restarts: int) -> str:
    """The name of one start of the workers: the attempt, and how often they were started again in it.

    >>> launch_name(1, 0)
    '0001.0'
    """
    return f"{attempt:04d}.{restarts}"


def hang_message(run: Run, attempt: int) -> str | None:
    """What the watchdogs of this launch left to say, if they ended it."""
    path = Launch(stacks_folder(run), launch_name(attempt, len(_restarts(run))), 0, 1).sign("message")
    return path.read_text() if path.exists() else None


def stacks_folder(run: Run) -> Path:
    """Where ranks that stand still write their stacks."""
    return run.path / "stacks"


# ---- in one sentence -------------------------------------------------------------------------------------------------


def reason_of(errors: Mapping[int, BaseException]) -> str:
    """What happened, from the errors of the ranks.

    When one rank dies the others lose their connection to it, so such errors are named only if there is no other.

    >>> reason_of({0: RuntimeError("Connection closed by peer"), 1: ValueError("no such row")})
    'rank 1: ValueError: no such row'
    """
    told = [(_weight(error), rank, _sentence(rank, error)) for rank, error in sorted(errors.items())]
    return min(told)[2] if told else "no rank said why"


def _weight(error: BaseException) -> int:
    if isinstance(error, MixturaError):
        return 0
    text = _text(error)
    if _CONNECTION.search(text) and not _PROCESS.search(text):
        return 2
    return 1


def _sentence(rank: int, error: BaseException) -> str:
    if isinstance(error, MixturaError):
        return str(error)
    text = _text(error)
    if _was_taken_back(error):
        return f"the machine of rank {rank} was taken back by its provider"
    if _PROCESS.search(text) is not None:
        return _death(rank, text)
    if _weight(error) == 2:
        return f"rank {rank} lost its connection to another rank, which died"
    return f"rank {rank}: {type(error).__name__}: {_first_line(str(error))}"


def _death(rank: int, text: str) -> str:
    if _HOST_MEMORY.search(text):
        return f"the process of rank {rank} was killed because {MEMORY_RAN_OUT}"
    if _NODE.search(text):
        return f"the machine of rank {rank} was lost"
    return f"the process of rank {rank} died"


def _was_taken_back(error: BaseException) -> bool:
    """Whether a worker's machine was preempted, as Ray knows it; Ray Train does not count that among the failures."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))


def _text(error: BaseException) -> str:
    """All that an error says, with what it wraps: Ray Train hides what became of a worker in an attribute."""
    inner = getattr(error, "health_check_failure", None)
    return f"{type(error).__name__}: {error}" + ("" if inner is None else f"\n{_text(inner)}")


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
