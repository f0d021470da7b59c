"""The family of errors: each is an answer that says what was asked, what was found and what to change.

MixturaError                 exit code 1
├── RequestError             exit code 2: the request itself is bad; nothing was started
│   ├── ConfigError          a recipe or an override does not describe a run
│   └── UnknownNameError     a name that is not there; carries the nearest known names
├── DataError                a source, cache or vocabulary cannot be used
│   └── CorruptCacheError    bytes on disk differ from what was committed
├── CheckpointError          a checkpoint cannot be written or read
│   └── CorruptCheckpointError
├── ResourceError            the machine or the cluster lacks something: CPUs, disk, a port
├── RunError                 a run cannot go on as asked: locked, changed, not resumable
└── TrainingError            training cannot go on: the loss is not finite, a worker died too often
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class MixturaError(Exception):
    """Anything that a person can act on. The command line prints it as one message, without a traceback."""

    exit_code = 1


class RequestError(MixturaError):
    """What was asked for cannot be done as it stands."""

    exit_code = 2


class ConfigError(RequestError):
    """A recipe or an override does not describe a run."""


class UnknownNameError(RequestError):
    """A name that does not exist, with the nearest names that do.

    >>> print(UnknownNameError("task", "rtee", ["rte", "squad"]))
    no task 'rtee'; nearest: 'rte'
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(map(repr, near))}" if near else f"known: {', '.join(self.known) or 'none'}"
        super().__init__(f"no {kind} {name!r}{where}; {hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return UnknownNameError, (self.kind, self.name, self.known)


class DataError(MixturaError):
    """A source, a cache or a vocabulary cannot be used."""


class CorruptCacheError(DataError):
    """The bytes of a token cache are not the ones that were committed."""


class CheckpointError(MixturaError):
    """A checkpoint cannot be written or read."""


class CorruptCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not the ones that were committed."""


class ResourceError(MixturaError):
    """The machine or the cluster lacks something that the work needs."""


class RunError(MixturaError):
    """A run cannot go on as asked."""


class TrainingError(MixturaError):
    """Training cannot go on."""


_LONGEST_LINE = 300


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the beginning of it.

    >>> first_line(OSError("no answer\\nTraceback ..."))
    'no answer'
    """
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def to_plain(error: MixturaError) -> dict[str, str]:
    """An error as plain values, for the way from one process to another: libraries in between keep only its text.

    >>> to_plain(DataError("no rows"))
    {'kind': 'DataError', 'message': 'no rows'}
    """
    return {"kind": type(error).__name__, "message": str(error)}


def from_plain(values: Mapping[str, str]) -> MixturaError:
    """The error again; a kind that is made from more than a message comes back as its nearest plain kind.

    >>> from_plain({"kind": "UnknownNameError", "message": "no task 'rtee'"})
    RequestError("no task 'rtee'")
    """
    kind = globals().get(values["kind"], MixturaError)
    if kind is UnknownNameError:
        kind = RequestError
    error: MixturaError = kind(values["message"])
    return error
