"""Counts the most memory that a step of a T5 takes in the engine, one case after the other, and prints it as JSON.

Run by test_memory.py in a process of its own: DeepSpeed leaves its marks on a process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from mixtura.models.t5 import T5Config, create_model, initialize
from mixtura.platform.training.engine import create_engine, initialize_distributed_single_process
from mixtura.platform.training.optimizer import OptimizerSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from footprint_runs import live, peak, state_of, storages

ROWS, LENGTH = 4, 128


def case(stage: int, precision: str, optimizer: str, feed_forward: Any, *, checkpointing: bool, bucket: int) -> int:
    """Bytes of tensors at the worst moment of a step with two microbatches; the second step, when all is allocated."""
    before = live()
    config = T5Config(384, 256, 64, 1024, 4, num_layers=4, num_decoder_layers=4, feed_forward=feed_forward)
    model = create_model(config, activation_checkpointing=checkpointing)
    initialize(model, 0)
    zero = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    engine = create_engine(
        model,
        optimizer=OptimizerSettings(name=optimizer),
        zero_stage=stage,
        precision=precision,
        passthrough={"zero_optimization": zero},
    )
    tokens = torch.randint(2, 128, (ROWS, LENGTH), dtype=torch.int32)
    segments = torch.ones_like(tokens)
    segments[:, LENGTH // 3 :] = 2
    features = {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": segments,
        "decoder_input_tokens": tokens,
        "decoder_segment_ids": segments,
        "dropout_keys": torch.arange(ROWS),
    }

    def step() -> None:
        engine.begin_step(2)
        for _ in range(2):
            engine.backward(engine.forward(**features).logsumexp(-1).sum() / 1000)
        engine.step(1e-3)

    step()
    parameters = storages(parameter.data for parameter in engine.module.parameters())
    kept = {**parameters, **state_of(engine)}
    kept |= {place: size for place, size in live().items() if place not in before}
    most = sum(kept.values()) + peak(step)
    engine.close()
    return most


def main() -> None:
    initialize_distributed_single_process()
    sys.stdout.write("counted " + json.dumps([case(**one) for one in json.loads(sys.argv[1])]) + "\n")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    main()
