"""Memory ran out: which settings make room, and how much."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import torch

from mixtura.platform.config import Config, parse_bytes
from mixtura.platform.orchestration.memory import STAGES, Planned, savings

_OF_PYTORCH = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory")
_NAMED = 3
_COPY_BYTES = {"adafactor": 4, "adamw": 12, "adamw_rms": 12}
"""Of the host copy of a checkpoint for each parameter: fp32 weights, and AdamW's two moments."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OF_PYTORCH.search(str(error)) is not None


def explain_out_of_memory(error: BaseException, config: Config, rank: int, world_size: int) -> str:
    """What happened on a rank, the three settings that help, and what each would save of its memory."""
    first = (str(error).strip().splitlines() or ["no reason given"])[0]
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    texts = relief(config, world_size, on_gpu=on_gpu)
    lines = [f"rank {rank} ran out of memory ({type(error).__name__}: {first}). What would make room on each worker:"]
    return "\n".join([*lines, *(f"  {text}" for text in texts)])


def relief(config: Config, workers: int, *, on_gpu: bool) -> list[str]:
    """The three settings that save most, the largest saving first, with the bytes that each would save on a worker.

    Where fewer are left that keep the result as it is, others follow.
    """
    best: dict[str, str] = {}
    for one in savings(config, workers, on_gpu=on_gpu):
        setting = one.override.partition("=")[0]
        best.setdefault(setting, f"{one.override}: {_shown(one.saved)} ({one.remark})")
    for saved, text in _beyond(config, workers, on_gpu=on_gpu):
        if saved > 0:
            best[text] = text.format(saved=_shown(saved))
    return list(best.values())[:_NAMED]


def _beyond(config: Config, workers: int, *, on_gpu: bool) -> Iterator[tuple[int, str]]:
    """Bytes saved by more workers, and by what makes another run of it."""
    planned = Planned.of(config)
    now = planned.setting(workers)
    before = planned.memory(now, on_gpu=on_gpu).total
    others = {stage: replace(planned.setting(2 * workers), stage=stage) for stage in STAGES if stage >= now.stage}
    needed, stage = min((planned.memory(other, on_gpu=on_gpu).total, stage) for stage, other in others.items())
    yield before - needed, f"executor.workers={2 * workers} at training.zero_stage={stage}: {{saved}} (the same result)"
    if config.training.precision == "fp32":
        training = config.training.model_copy(update={"precision": "bf16"})
        half = Planned.of(config.model_copy(update={"training": training}))
        needed = half.memory(half.setting(workers), on_gpu=on_gpu).total
        yield before - needed, "training.precision=bf16: {saved} (another run, nearly the same losses)"
    encoder, decoder = planned.encoder_length // 2, -(-planned.decoder_length // 2)
    needed = replace(planned, encoder_length=encoder, decoder_length=decoder).memory(now, on_gpu=on_gpu).total
    yield before - needed, "half of data.inputs_length and data.targets_length: {saved} (another run, of shorter rows)"


def relief_of_machine(config: Config, workers: int) -> list[str]:
    """What makes room in the memory of machines whose workers compute on GPUs: blocks of data, and the host copies of
    weights and optimizer that checkpoints are written from."""
    planned = Planned.of(config)
    setting = planned.setting(workers)
    blocks = parse_bytes(config.data.stream_memory)
    copied = planned.weights.trained_elements * _COPY_BYTES[config.optimizer.name]
    copy = copied // (workers if setting.stage else 1)
    texts = [
        f"data.stream_memory={blocks // 2_000_000}MB: {_shown(blocks / 2)} on each worker (the same result)",
        f"a worker fewer on each machine: {_shown(blocks + copy)} (the same result)",
    ]
    if setting.offload:
        kept = replace(setting, offload=False)
        saved = planned.memory(kept, on_gpu=True).total - planned.memory(setting, on_gpu=True).total
        texts.append(f"training.deepspeed without offload_optimizer: {_shown(saved)} on each worker")
    elif not setting.stage and workers > 1:
        texts.append(f"training.zero_stage=1: {_shown(copied - copied // workers)} on rank 0 (the same result)")
    else:
        texts.append(f"executor.workers={2 * workers} on twice the machines: {_shown(copy / 2)} on each worker")
    return texts


def _shown(size_bytes: float) -> str:
    """
    >>> _shown(1_500_000_000), _shown(20_000_000), _shown(3_000)
    ('about 1.5 GB', 'about 20 MB', 'less than 1 MB')
    """
    if size_bytes >= 1e9:
        return f"about {size_bytes / 1e9:.1f} GB"
    return f"about {size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else "less than 1 MB"
