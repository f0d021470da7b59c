"""Forward and backward of a small T5 1.1 beside transformers' T5 with the same weights; one thread, fp32.

Run by hand on a quiet machine: `python benchmarks/training_step.py`. The two are timed in turn, so that a machine whose
speed drifts moves both; the ratio is of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from mixtura.models.t5 import T5, T5Config, hf_config, hf_state, initialize

ROWS, INPUTS, TARGETS = 8, 128, 48
REPEATS = 9
SHAPES = {
    "d128, 2 + 2 layers": T5Config(4096, 128, 32, 384, 4, 2, 2, feed_forward="gated-gelu", tie_embeddings=False),
    "d256, 4 + 4 layers": T5Config(4096, 256, 64, 1024, 4, 4, 4, feed_forward="gated-gelu", tie_embeddings=False),
}


def peer_of(model: T5) -> torch.nn.Module:
    """transformers' model with the same weights."""
    from transformers import T5Config as PeerConfig
    from transformers import T5ForConditionalGeneration

    config = PeerConfig(**{**hf_config(model.config), "dropout_rate": 0.0})
    config.tie_word_embeddings = model.config.tie_embeddings
    peer = T5ForConditionalGeneration(config)
    peer.load_state_dict(hf_state(model.state_dict(), model.config), strict=False)
    return peer.train()


def seconds(step: Callable[[], torch.Tensor]) -> float:
    """Time of one forward and backward pass."""
    started = time.perf_counter()
    step().backward()
    return time.perf_counter() - started


def main() -> None:
    """Print positions for each second, ours and the peer's, and the ratio."""
    torch.set_num_threads(1)
    positions = ROWS * (INPUTS + TARGETS)
    print(f"{'model':<22}{'ours, positions/s':>20}{'transformers':>16}{'ratio':>8}")
    for name, config in SHAPES.items():
        model = T5(config)
        initialize(model, 0)
        peer = peer_of(model)
        inputs = torch.randint(3, config.vocab_size, (ROWS, INPUTS))
        targets = torch.randint(3, config.vocab_size, (ROWS, TARGETS))

        def ours(model: T5 = model, inputs: torch.Tensor = inputs, targets: torch.Tensor = targets) -> torch.Tensor:
            return model(inputs, targets).mean()

        def theirs(
            peer: torch.nn.Module = peer, inputs: torch.Tensor = inputs, targets: torch.Tensor = targets
        ) -> torch.Tensor:
            logits: torch.Tensor = peer(input_ids=inputs, decoder_input_ids=targets).logits
            return logits.mean()

        pairs = [(seconds(ours), seconds(theirs)) for _ in range(REPEATS + 1)][1:]
        mine, other = (positions / statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:<22}{mine:>20,.0f}{other:>16,.0f}{mine / other:>8.2f}")


if __name__ == "__main__":
    main()
