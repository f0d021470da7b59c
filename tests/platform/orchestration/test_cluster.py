"""The ledger of CPUs: everything fits, and a plan that could never be scheduled is refused with its numbers."""

from __future__ import annotations

import pytest

from mixtura.platform.config import ExecutorSection
from mixtura.platform.errors import ResourceError
from mixtura.platform.orchestration.cluster import divide


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 16, 96])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_no_more_is_given_away_than_there_is(cpus: int, workers: int) -> None:
    ledger = divide(cpus, 0, ExecutorSection(workers=workers))
    spent = (
        workers * ledger.worker_cpus
        + workers * ledger.builders * ledger.builder_cpus
        + ledger.evaluators * ledger.evaluator_cpus
    )
    assert spent <= cpus + 1e-9
    assert min(ledger.worker_cpus, ledger.builder_cpus, ledger.evaluator_cpus) > 0


def test_workers_that_leave_nothing_for_the_data_are_refused() -> None:
    with pytest.raises(ResourceError, match="2 workers with 1 CPUs each leave 0 of 2 CPUs"):
        divide(2, 0, ExecutorSection(workers=2, cpus_per_worker=1))


def test_missing_gpus_are_named() -> None:
    with pytest.raises(ResourceError, match="need 4 GPUs; the cluster has 1"):
        divide(8, 1, ExecutorSection(workers=4, gpus_per_worker=1))
