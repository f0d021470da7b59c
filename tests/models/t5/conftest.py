from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mixtura.models.t5 import T5Config, TextToText, create_model

V1_0 = T5Config(
    vocab_size=64, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=2, num_decoder_layers=3, dropout_rate=0.25
)
V1_1 = T5Config(
    vocab_size=64,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_heads=3,
    num_layers=3,
    num_decoder_layers=2,
    dropout_rate=0.25,
    feed_forward="gated-gelu",
    tie_embeddings=False,
)


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=[V1_0, V1_1], ids=["v1_0", "v1_1"])
def config(request: pytest.FixtureRequest) -> T5Config:
    """Toy shapes of both architectures, with stacks of unequal depth and heads x d_kv unlike d_model."""
    chosen: T5Config = request.param
    return chosen


@pytest.fixture
def random_model() -> Callable[..., TextToText]:
    """Builds a model with every parameter drawn at random: norm scales and bias tables too.

    A larger `gain` lets the layers outshout the embedding of the last token, which a small model else repeats.
    """

    def build(config: T5Config, attention: str = "sdpa", seed: int = 0, gain: float = 1.0) -> TextToText:
        model = create_model(config, attention=attention)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = torch.randn(parameter.shape, generator=generator)
                if name.endswith("scale"):
                    values = 1.0 + 0.3 * values
                elif not name.endswith(("embedding.weight", "relative_bias.weight")):
                    values *= gain * parameter.shape[-1] ** -0.5
                parameter.copy_(values)
        return model

    return build


@pytest.fixture
def padded_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder inputs [3, 150] and targets [3, 140] with ids 2 ... 63, EOS, and padding at the end of some rows."""
    generator = torch.Generator().manual_seed(7)

    def rows(length: int, real: list[int]) -> torch.Tensor:
        tokens = torch.randint(2, 64, (len(real), length), generator=generator)
        for row, count in enumerate(real):
            tokens[row, count - 1] = 1
            tokens[row, count:] = 0
        return tokens

    return rows(150, [150, 131, 9]), rows(140, [20, 140, 133])
