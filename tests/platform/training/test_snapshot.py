"""A snapshot is a copy, made in memory that the one before it no longer needs."""

from __future__ import annotations

import pytest
import torch

from mixtura.platform.training.snapshot import FragmentState, HostCopies, Snapshot


def snapshot_of(values: torch.Tensor, row: torch.Tensor, reuse: Snapshot | None = None) -> Snapshot:
    host = HostCopies(reuse)
    fragment = FragmentState("w", tuple(values.shape), 0, {"master": host.copy("w", "master", values)})
    copied = {"w/row": host.copy("w/row", "", row)}
    host.wait()
    return Snapshot([fragment], copied)


def memory(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.fragments[0].tensors["master"].data_ptr(), snapshot.replicated["w/row"].data_ptr()


def test_training_that_goes_on_changes_no_snapshot() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    snapshot = snapshot_of(values, torch.ones(2))
    values += 1
    assert snapshot.fragments[0].tensors["master"].tolist() == [1.0, 2.0, 3.0]


def test_memory_of_a_snapshot_that_is_not_needed_any_more_is_taken_again() -> None:
    first = snapshot_of(torch.tensor([1.0, 2.0, 3.0]), torch.ones(2))
    where = memory(first)
    second = snapshot_of(torch.tensor([4.0, 5.0, 6.0]), torch.zeros(2), reuse=first)
    assert memory(second) == where
    assert second.fragments[0].tensors["master"].tolist() == [4.0, 5.0, 6.0]
    assert second.replicated["w/row"].tolist() == [0.0, 0.0]


def test_a_fragment_of_another_size_gets_memory_of_its_own() -> None:
    first = snapshot_of(torch.tensor([1.0, 2.0, 3.0]), torch.ones(2))
    second = snapshot_of(torch.tensor([4.0, 5.0]), torch.ones(2), reuse=first)
    assert second.fragments[0].tensors["master"].tolist() == [4.0, 5.0]


def test_copies_are_fp32_whatever_is_copied() -> None:
    snapshot = snapshot_of(torch.tensor([1.5, 2.5], dtype=torch.bfloat16), torch.ones((), dtype=torch.float64))
    assert snapshot.fragments[0].tensors["master"].dtype == torch.float32
    assert snapshot.fragments[0].tensors["master"].tolist() == [1.5, 2.5]
    assert snapshot.replicated["w/row"].shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu_lie_in_page_locked_memory_and_are_there_after_the_wait() -> None:
    values = torch.arange(5_000_000, dtype=torch.float32, device="cuda")
    first = snapshot_of(values, values[:10])
    assert first.fragments[0].tensors["master"].is_pinned()
    where = memory(first)
    values += 1
    second = snapshot_of(values, values[:10], reuse=first)
    assert memory(second) == where
    torch.testing.assert_close(second.fragments[0].tensors["master"], values.cpu(), rtol=0, atol=0)
