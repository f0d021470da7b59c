"""A run that stands still: notice it on every rank, write down where each one is, and end the attempt.

    runs/NAME/stacks/
      0001.0-000012-rank-1.txt     Python stacks of rank 1's threads: attempt 1, not yet restarted, after step 12
      .0001.0.hang                 the first rank that noticed: now all write their stacks
      .0001.0.paused               rank 0 evaluates a checkpoint, and the others wait for it: no hang
      .0001.0.message              what is said of it, for the ranks and for whoever restarts them

Ranks that wait for one that does not come cannot be told from it by time alone, since all have ended the same step. In
the stacks they can: who waits is inside a collective operation. (On GPUs such operations are only begun there, and the
stacks tell no more than which ranks still wait for their rows.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from mixtura.platform.errors import TrainingError
from mixtura.platform.files import write_bytes_atomically

FIRST_STEP = 3
"""The first step of a launch may take so many times as long: it may compile, and its blocks are built first."""
_LONGEST_POLL_S = 2.0
_SAMPLES = 4
_FOR_RANKS, _FOR_ROWS, _BUSY = "waits for other ranks", "waits for its rows", "is at work"
_UNWIND_S = 10.0
_FAILED = 1


@dataclass(frozen=True)
class Launch:
    """One start of all ranks: the name under which they leave word for each other, and how many they are."""

    folder: Path
    name: str
    rank: int
    world_size: int

    def stacks(self, step: int, rank: int) -> Path:
        """The file for a rank's stacks."""
        return self.folder / f"{self.name}-{step:06d}-rank-{rank}.txt"

    def sign(self, what: str) -> Path:
        """A file by which one rank tells the others."""
        return self.folder / f".{self.name}.{what}"


class Watchdog:
    """Watches a rank's steps from a thread of its own, while its context lasts.

    If no step ended for `limit_s`, all ranks write their stacks, and `end` is called on each, from the watching
    thread, with a message that names the files and the ranks that are late. `works_elsewhere` gives a value that
    changes as long as something that a rank may wait for (a shard that is prepared) makes progress; that is no hang.

    If the watching itself fails, `end` is called too: a run that nobody watches could stand still for ever.
    """

    def __init__(
        self,
        launch: Launch,
        limit_s: float | None,
        end: Callable[[str], None],
        works_elsewhere: Callable[[], object] = lambda: None,
    ) -> None:
        self.launch, self.limit_s, self._end, self._works_elsewhere = launch, limit_s, end, works_elsewhere
        self._step, self._first, self._pausing = 0, True, False
        self._renewed_s = time.monotonic()
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, step: int) -> None:
        """A step has ended."""
        self._step, self._first, self._renewed_s = step, False, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No step ends meanwhile, and that is as it should be; on no rank, if this is rank 0."""
        sign = self.launch.sign("paused")
        for_all = self.limit_s is not None and self.launch.rank == 0 and self.launch.world_size > 1
        self._pausing = True
        if for_all:
            _create(sign)
        try:
            yield
        finally:
            self._renewed_s = time.monotonic()
            self._pausing = False
            if for_all:
                sign.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # other ranks' stacks are there
                    sign.parent.rmdir()

    def __enter__(self) -> Self:
        self._thread_id, self._renewed_s = threading.get_ident(), time.monotonic()
        if self.limit_s is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback_: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001  nobody else would ever see it
            text = f"the watchdog of rank {self.launch.rank} failed: {type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # what it failed for may keep it from leaving word too
                write_bytes_atomically(self.launch.sign("message"), text.encode())
            if not self._over.is_set():
                self._end(text)

    def _follow(self) -> None:
        assert self.limit_s is not None
        poll_s = min(_LONGEST_POLL_S, self.limit_s / 10)
        sampled_s, sample = time.monotonic(), self._sample()
        while not self._over.wait(poll_s):
            now = time.monotonic()
            if self._pausing or self.launch.sign("paused").exists():
                self._renewed_s = now
            if now - sampled_s > self.limit_s / _SAMPLES:
                before, sampled_s, sample = sample, now, self._sample()
                if sample != before and before is not None:
                    self._renewed_s = now
            if self.launch.sign("hang").exists() or self._is_hang(now):
                self._give_up(poll_s)
                return

    def _sample(self) -> object:
        try:
            return self._works_elsewhere()
        except Exception:  # noqa: BLE001  a store that does not answer makes no progress either
            return None

    def _is_hang(self, now: float) -> bool:
        assert self.limit_s is not None
        return now - self._renewed_s > self.limit_s * (FIRST_STEP if self._first else 1)

    def _give_up(self, poll_s: float) -> None:
        """Write this rank's stacks; the rank that noticed first also waits for the others' and says what they show."""
        first = _create(self.launch.sign("hang"))
        head = (
            f"rank {self.launch.rank} of {self.launch.world_size} {what_it_does(self._thread_id)}; step {self._step} "
            f"ended {time.monotonic() - self._renewed_s:.0f} s ago\n\n"
        )
        own = self.launch.stacks(self._step, self.launch.rank)
        with contextlib.suppress(OSError):  # a full disk is no reason to wait for ever
            write_bytes_atomically(own, (head + stacks_of_threads(self._thread_id)).encode())
        patience_s = 5.0 + 5 * poll_s
        message = self.launch.sign("message")
        if first:
            ranks = range(self.launch.world_size)
            self._until(lambda: all(self._stacks_of(rank) for rank in ranks), patience_s)
            with contextlib.suppress(OSError):
                write_bytes_atomically(message, self._explain().encode())
        else:
            self._until(message.exists, 2 * patience_s)
        if not self._over.is_set():
            self._end(message.read_text() if message.exists() else self._explain())

    def _until(self, holds: Callable[[], bool], patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not holds() and time.monotonic() < deadline and not self._over.wait(0.05):
            pass

    def _stacks_of(self, rank: int) -> Path | None:
        return next(iter(sorted(self.launch.folder.glob(f"{self.launch.name}-*-rank-{rank}.txt"))), None)

    def _explain(self) -> str:
        assert self.limit_s is not None
        files = [self._stacks_of(rank) for rank in range(self.launch.world_size)]
        heads = ["" if file is None else file.read_text().partition("\n")[0] for file in files]
        doing = [next((what for what in (_FOR_RANKS, _FOR_ROWS, _BUSY) if what in head), None) for head in heads]
        allowed_s = self.limit_s * (FIRST_STEP if self._first else 1)
        there = ", ".join(str(file) for file in files if file is not None)
        return (
            f"no step ended for {allowed_s:.0f} s after step {self._step} (executor.hang_after): "
            f"{who_is_late(doing)}. The Python stacks of the ranks are in {there}"
        )


def who_is_late(doing: Sequence[str | None]) -> str:
    """What the ranks' stacks say, by what each does; None for one that wrote none.

    >>> who_is_late(["waits for other ranks", "is at work", "waits for other ranks"])
    'rank 1 is at work, and the others wait for it'
    >>> who_is_late(["is at work", "waits for its rows"])
    'rank 1 waits for its rows, and the others wait for it'
    >>> who_is_late(["waits for other ranks", None])
    'rank 1 gave no sign of life: it is stopped, or its machine is gone'
    """
    if len(doing) == 1:
        return f"the only rank {doing[0] or 'gave no sign of life'}"
    for what in (None, _FOR_ROWS, _BUSY):
        late = [rank for rank, does in enumerate(doing) if does == what]
        if late and what is None:
            return f"{_ranks(late)} gave no sign of life: it is stopped, or its machine is gone"
        if late and len(late) < len(doing):
            return f"{_ranks(late)} {what}, and the others wait for it"
    return "which rank is late cannot be told from what they do"


def _ranks(ranks: Sequence[int]) -> str:
    return f"ranks {', '.join(map(str, ranks))} each" if len(ranks) > 1 else f"rank {ranks[0]}"


def _create(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def what_it_does(thread_id: int) -> str:
    """What a rank's training thread does: waits for the other ranks in torch.distributed, for its rows, or neither."""
    frame: FrameType | None = sys._current_frames().get(thread_id)
    while frame is not None:
        if "torch/distributed/" in frame.f_code.co_filename:
            return _FOR_RANKS
        if frame.f_code.co_name == "next_batch":
            return _FOR_ROWS
        frame = frame.f_back
    return _BUSY


def stacks_of_threads(first: int) -> str:
    """The Python stacks of all threads, the innermost call last; one thread before the others."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    parts = []
    for ident in sorted(frames, key=lambda ident: (ident != first, ident)):
        stack = "".join(traceback.format_stack(frames[ident]))
        parts.append(f"thread {names.get(ident, ident)}:\n{stack}")
    return "\n".join(parts)


class Interruption:
    """Ends what this thread does, while its context lasts, with an error that another thread gives.

    The main thread is woken by a signal from whatever it sleeps or waits in. Where that does not end it within some
    seconds, or another thread is meant, the process ends with the message on standard error.
    """

    def __init__(self) -> None:
        self._message = ""
        self._ended = threading.Event()
        self._main = threading.current_thread() is threading.main_thread()

    def __call__(self, message: str) -> None:
        """Raise TrainingError with this message in the thread."""
        self._message = message
        if self._main:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not self._main or not self._ended.wait(_UNWIND_S):
            leave_process(message)

    def __enter__(self) -> Self:
        if self._main:
            self._before = signal.signal(signal.SIGUSR1, self._raise)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback_: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._main:
            signal.signal(signal.SIGUSR1, self._before)

    def _raise(self, *_: object) -> None:
        self._ended.set()
        raise TrainingError(self._message)


def leave_process(message: str) -> None:
    """End this process at once, whatever its other threads are in."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(_FAILED)
