"""The ledger of CPUs and memory: everything fits, and what could never be scheduled is refused with its numbers."""

from __future__ import annotations

import pytest

from mixtura.platform.config import ExecutorSection
from mixtura.platform.errors import ResourceError
from mixtura.platform.orchestration.cluster import Node, all_have_a_place, divide


@pytest.mark.parametrize("preparing", [False, True])
@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 16, 96])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_no_more_is_given_away_than_there_is(cpus: int, workers: int, preparing: bool) -> None:
    ledger = divide(cpus, 0, ExecutorSection(workers=workers), preparing=preparing)
    spent = (
        workers * ledger.worker_cpus
        + workers * ledger.builders * ledger.builder_cpus
        + ledger.evaluators * ledger.evaluator_cpus
        + ledger.preparers * ledger.preparer_cpus
    )
    assert spent == pytest.approx(sum(cpus for cpus, _ in ledger.places()))
    assert spent <= cpus + 1e-9
    assert min(ledger.worker_cpus, ledger.builder_cpus, ledger.evaluator_cpus) > 0
    assert (ledger.preparers > 0) == (ledger.preparer_cpus > 0) == preparing


def test_preparing_while_others_train_has_cpus_of_its_own() -> None:
    ledger = divide(6, 0, ExecutorSection(workers=1), preparing=True, stream_memory=200_000_000)
    assert (
        ledger.describe() == "1 x 3 CPU train, 2 x 0.5 build blocks, 2 x 0.5 evaluate, 1 x 1 prepare, of 6 CPUs; "
        "up to 200 MB of blocks for each worker"
    )


def test_a_worker_has_two_builders_where_they_are_not_too_small() -> None:
    """Two windows of blocks can be under way then."""
    assert [divide(cpus, 0, ExecutorSection(workers=1)).builders for cpus in (1, 2, 4, 16)] == [1, 2, 2, 4]


def test_workers_that_leave_nothing_for_the_data_are_refused() -> None:
    with pytest.raises(ResourceError, match="2 workers with 1 CPUs each leave 0 of 2 CPUs"):
        divide(2, 0, ExecutorSection(workers=2, cpus_per_worker=1))


def test_missing_gpus_are_named() -> None:
    with pytest.raises(ResourceError, match="need 4 GPUs; the cluster has 1"):
        divide(8, 1, ExecutorSection(workers=4, gpus_per_worker=1))


def test_evaluation_beside_training_shares_no_cpu_with_it() -> None:
    for cpus, workers in ((2, 1), (4, 1), (4, 2), (8, 3), (96, 8)):
        ledger = divide(cpus, 0, ExecutorSection(workers=workers), beside=True)
        assert workers * ledger.threads + ledger.evaluators * ledger.evaluator_threads <= cpus
        assert sum(cpus for cpus, _ in ledger.places()) <= cpus + 1e-9
    assert (
        divide(2, 0, ExecutorSection(workers=1), beside=True, stream_memory=10**6).describe()
        == "1 x 1 CPU train, 1 x 0.25 build blocks, 1 x 0.75 evaluate, of 2 CPUs; up to 1 MB of blocks for each worker"
    )


def test_evaluation_beside_training_is_refused_where_there_is_no_cpu_for_it() -> None:
    with pytest.raises(ResourceError, match=r"2 workers train on 2 of 2 CPUs, .*evaluation\.when=pause"):
        divide(2, 0, ExecutorSection(workers=2), beside=True)


def test_evaluators_take_the_gpus_that_no_worker_has_or_those_of_workers_that_stand_still() -> None:
    workers = ExecutorSection(workers=4, gpus_per_worker=1)
    beside = divide(32, 6, workers, beside=True)
    assert (beside.evaluators, beside.evaluator_gpus) == (2, 1.0)
    assert sum(gpus for _, gpus in beside.places()) == 6
    none_left = divide(32, 4, workers, beside=True)
    assert (none_left.evaluator_gpus, none_left.evaluates_on_gpus_of_workers) == (0.0, False)
    pausing = divide(32, 4, workers)
    assert (pausing.evaluator_gpus, pausing.evaluates_on_gpus_of_workers) == (0.0, True)
    assert "evaluate" in pausing.describe()
    assert "on the workers' GPUs" in pausing.describe()


def test_evaluators_have_the_whole_machine_while_training_waits() -> None:
    for cpus in (2, 16):
        ledger = divide(cpus, 0, ExecutorSection(workers=1))
        assert ledger.evaluators * ledger.evaluator_threads == cpus


def test_a_worker_is_never_larger_than_a_node() -> None:
    """Half of 12 CPUs is 6, but a worker is on one node, which has 4."""
    nodes = [Node(4)] * 3
    ledger = divide(12, 0, ExecutorSection(workers=1), nodes=nodes)
    assert ledger.worker_cpus == 4
    assert all_have_a_place(nodes, ledger.places())


def test_shares_shrink_until_each_has_a_place_on_a_node() -> None:
    """Two workers of 0.75 leave 0.25, 0.25 and 1 on three nodes: pieces of 0.375 do not fill them."""
    nodes = [Node(1)] * 3
    ledger = divide(3, 0, ExecutorSection(workers=2), nodes=nodes)
    assert ledger.worker_cpus == 0.75
    assert all_have_a_place(nodes, ledger.places())
    assert min(ledger.builder_cpus, ledger.evaluator_cpus) > 0.1


def test_workers_that_fit_on_no_node_are_refused_with_what_the_nodes_have() -> None:
    settings = ExecutorSection(workers=2, cpus_per_worker=3)
    with pytest.raises(ResourceError, match=r"2 workers with 3 CPUs and 0 GPUs each do not fit .*2 CPUs and 0 GPUs"):
        divide(8, 0, settings, nodes=[Node(2)] * 4)


def test_workers_of_a_node_share_half_of_its_object_store() -> None:
    """The second node can hold two of the three workers: 1.2 GB / 2 / 2 = 300 MB each."""
    nodes = [Node(8, object_store=8_000_000_000), Node(4, object_store=1_200_000_000)]
    settings = ExecutorSection(workers=3, cpus_per_worker=2)
    assert divide(12, 0, settings, stream_memory=10**9, nodes=nodes).stream_memory == 300_000_000
    assert divide(12, 0, settings, stream_memory=10**8, nodes=nodes).stream_memory == 10**8


def test_a_worker_has_as_many_threads_as_cpus_where_they_were_asked_for_and_else_its_part_of_the_machine() -> None:
    asked = [None, 1, 3, 0.5]
    assert [divide(8, 0, ExecutorSection(workers=2, cpus_per_worker=cpus)).threads for cpus in asked] == [4, 1, 3, 1]
    assert divide(2, 0, ExecutorSection(workers=3)).threads == 1
