"""The weights a T5 starts from, as the Mesh-TensorFlow code of the paper draws them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.model import TextToText


def initialize(model: TextToText, seed: int) -> None:
    """Fills all parameters of a model; a parameter's values depend on the seed, its name and the config only.

    | weight              | distribution                                       |
    |---------------------|----------------------------------------------------|
    | embedding           | normal, standard deviation 1                       |
    | q                   | normal, (d_model d_kv)^-0.5                        |
    | k, v                | normal, d_model^-0.5                               |
    | o                   | normal, (heads d_kv)^-0.5                          |
    | wi, wi_0, wi_1      | normal, d_model^-0.5, cut at 2 standard deviations |
    | wo                  | normal, d_ff^-0.5, cut at 2 standard deviations    |
    | head                | normal, d_model^-0.5, cut at 2 standard deviations |
    | adapter: wi         | as wi                                              |
    | adapter: wo         | normal, size^-0.5, cut at 2 standard deviations    |
    | relative bias       | uniform within (6 / (heads + buckets))^0.5         |
    | norms               | ones                                               |

    The standard deviation is that of the uncut normal: cutting leaves 0.88 of it, which the original does not undo.
    An adapter begins as the feed-forward block that it is, not near zero: the size of Adafactor's updates is relative
    to that of the weights.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(name, tuple(parameter.shape), model.config, seed))


def draw(name: str, shape: tuple[int, ...], config: T5Config, seed: int) -> Tensor:
    """The first values of one parameter, float32 on the CPU."""
    values = torch.empty(shape, device="cpu", dtype=torch.float32)
    generator = _generator(name, seed)
    owner, kind = name.split(".")[-2:]
    if kind == "scale":
        return values.fill_(1.0)
    if owner == "relative_bias":
        limit = (6.0 / (config.num_heads + config.relative_attention_num_buckets)) ** 0.5
        return values.uniform_(-limit, limit, generator=generator)
    deviation = _deviation(name, config)
    if owner in ("embedding", "q", "k", "v", "o"):
        return values.normal_(0.0, deviation, generator=generator)
    return nn.init.trunc_normal_(values, 0.0, deviation, -2.0 * deviation, 2.0 * deviation, generator=generator)


def _deviation(name: str, config: T5Config) -> float:
    """The standard deviation of a weight, before any cut."""
    owner = name.split(".")[-2]
    if name.endswith(".adapter.wo.weight") and config.adapter_size is not None:
        return float(config.adapter_size**-0.5)
    inputs = {
        "embedding": 1,
        "q": config.d_model * config.d_kv,  # carries the 1 / sqrt(d_kv) that the attention leaves out
        "o": config.inner,
        "wo": config.d_ff,
    }
    return float(inputs.get(owner, config.d_model) ** -0.5)


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
