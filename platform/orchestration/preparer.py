"""Preparation that goes on while a run trains: shards come in the order in which training will ask for them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from mixtura.platform.data.cache import begin, commit, committed_shards, is_closed, leave_failure, remove_leftovers
from mixtura.platform.errors import DataError, MixturaError, ResourceError
from mixtura.platform.orchestration.executor import Executor
from mixtura.platform.orchestration.prepare import PendingCache, describe_cache, interleaved, lock_of
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.shard_job import GivenUpError, prepare_pending

_TELL_EVERY_S = 60.0
_LOOK_AGAIN_S = 1.0
_PATIENCE_S = 10.0


class Preparer:
    """Prepares what `prepare` left to do, on a thread of its own, while the context lasts.

    A shard that another run prepares meanwhile (it holds the cache's lock) is waited for like one's own. If the work
    fails, the error is left in the caches, and whoever waits for one of their shards raises it.
    """

    def __init__(self, pending: Sequence[PendingCache], executor: Executor, reporter: Reporter) -> None:
        self._pending, self._executor, self._reporter = list(pending), executor, reporter
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparer", daemon=True)

    def __enter__(self) -> Self:
        if self._pending:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop between two batches of a shard; what is committed is kept, and the next run goes on from it."""
        self._stopped.set()
        if self._pending:
            self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        try:
            self._prepare_all()
        except GivenUpError:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the readers, which would wait for ever
            if self._stopped.is_set():
                return
            known = error if isinstance(error, MixturaError) else DataError(f"preparing failed: {error!r}")
            self._reporter.line(f"preparing during training ended early: {known}")
            for cache in self._pending:
                with contextlib.suppress(Exception):  # a place that cannot be written cannot say why either
                    if not is_closed(cache.place):
                        leave_failure(cache.place, known)

    def _prepare_all(self) -> None:
        rest = self._pending
        while rest and not self._stopped.is_set():
            with ExitStack() as held:
                mine = [cache for cache in rest if _taken(held, cache.place)]
                self._prepare(mine)
            rest = [cache for cache in rest if cache not in mine]
            if rest and not mine:
                self._stopped.wait(_LOOK_AGAIN_S)

    def _prepare(self, caches: Sequence[PendingCache]) -> None:
        """All shards that these caches lack, and a manifest for each as soon as it has them."""
        open_caches = [cache for cache in caches if not is_closed(cache.place)]
        for cache in open_caches:  # another run's failure, after which this one has the lock, is not ours
            begin(cache.place, cache.name, "unsupervised", cache.made_from, cache.counts)
        missing = {cache.place: _missing(cache) for cache in open_caches}
        left = {place: len(jobs) for place, jobs in missing.items()}
        for cache in open_caches:
            total = len(cache.jobs)
            if left[cache.place]:
                self._reporter.line(f"{cache.name}: {left[cache.place]} of {total} shards are prepared during training")
            else:
                self._close(cache)
        by_place = {cache.place: cache for cache in open_caches}
        told = time.monotonic()
        for done in self._executor.map_beside(prepare_pending, interleaved(missing.values()), self._stopped.is_set):
            if self._stopped.is_set():
                raise GivenUpError
            cache = by_place[done["cache"]]
            left[cache.place] -= 1
            if not left[cache.place]:
                self._close(cache)
            elif time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                self._reporter.line(
                    f"prepare {cache.name} {len(cache.jobs) - left[cache.place]}/{len(cache.jobs)} shards"
                )

    def _close(self, cache: PendingCache) -> None:
        commit(cache.place, cache.name, cache.made_from, cache.counts)
        self._reporter.line(describe_cache(cache.place))


def _taken(held: ExitStack, place: str) -> bool:
    """Hold the lock of a cache for as long as `held` lasts; False where another process has it."""
    try:
        held.enter_context(lock_of(place, "the cache is being prepared", wait=False))
    except ResourceError:
        return False
    remove_leftovers(place)
    return True


def _missing(cache: PendingCache) -> list[dict[str, Any]]:
    """The jobs of shards that are not committed, in the order in which training asks for them."""
    committed = committed_shards(cache.place, "train", len(cache.jobs))
    return [job for job in cache.jobs if job["index"] not in committed]
