"""Where the stages of a corpus run: here, one job after the other, or as tasks of a Ray cluster that may grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mixtura.platform.config import ExecutorSection
from mixtura.platform.errors import MixturaError, ResourceError

Job = dict[str, Any]
Lost = Callable[[Job, str], Job]
"""What to do with a job whose process was lost again and again, and why it was: a result, or it raises."""
MapJobs = Callable[[Callable[[Job], Job], Sequence[Job], Lost | None], Iterator[Job]]
"""Calls a function on every job and gives the results in any order."""

_TRIES = 3
_WAITING_PER_CPU = 2
_FEWEST_WAITING = 16


@contextlib.contextmanager
def corpus_tasks(settings: ExecutorSection) -> Iterator[tuple[MapJobs, int]]:
    """A way to run jobs, and on how many CPUs, while the context lasts."""
    if settings.kind == "inline":
        yield _inline, 1
        return
    from mixtura.platform.orchestration.cluster import connection

    with connection(settings):
        import ray

        yield _on_ray, max(1, int(ray.cluster_resources().get("CPU", 0)))


def _inline(function: Callable[[Job], Job], jobs: Sequence[Job], _: Lost | None) -> Iterator[Job]:
    return map(function, jobs)


def _on_ray(function: Callable[[Job], Job], jobs: Sequence[Job], lost: Lost | None) -> Iterator[Job]:
    """A task for each job. More are waiting than there are CPUs, so that a cluster that can grow does; a job whose
    machine is lost is done again elsewhere."""
    import ray

    task = ray.remote(function).options(num_cpus=1, max_retries=_TRIES - 1, retry_exceptions=False)
    left = iter(jobs)
    running: dict[Any, Job] = {}
    while True:
        wanted = max(_FEWEST_WAITING, int(_WAITING_PER_CPU * ray.cluster_resources().get("CPU", 1)))
        while len(running) < wanted and (job := next(left, None)) is not None:
            running[task.remote(job)] = job
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            yield _result(reference, running.pop(reference), lost)


def _result(reference: Any, job: Job, lost: Lost | None) -> Job:
    import ray

    try:
        result: Job = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MixturaError | OSError):
            raise error.cause from None
        raise
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
    ) as error:
        cause = f"its process ended {_TRIES} times: {str(error).strip().splitlines()[0][:200]}"
        if lost is None:
            raise ResourceError(f"{cause}; everything done is kept, and the same command goes on from there") from None
        return lost(job, cause)
    return result
