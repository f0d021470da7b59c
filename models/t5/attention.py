"""Attention with T5's relative position bias.

What is added to the scores (position bias and masks) is made once per stack and shared by its layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout
from mixtura.models.t5.layers import Linear, unfilled

AttentionKind = Literal["sdpa", "eager"]

MASKED = -1e9
"""Added to the score of a pair that may not see each other; finite, so that a row that sees nothing is finite too."""


def distance_buckets(buckets: int, max_distance: int) -> tuple[int, ...]:
    """The bucket of each distance 0 ... max_distance to one side; all larger distances share the last one.

    The first half of the buckets holds one distance each. The others widen, as far words matter less by their exact
    place: `half + floor(ln(n / half) / ln(max_distance / half) * (buckets - half))`, in float32 as in the original.

    >>> distance_buckets(8, 20)
    (0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7)
    """
    half = buckets // 2
    # On the CPU whatever the default device: another device's logarithm may fall on the other side of a border.
    n = torch.arange(max_distance + 1, device="cpu")
    ratio = torch.log(n.clamp(min=half).float() / half) / math.log(max_distance / half)
    widening = half + (ratio * (buckets - half)).to(torch.int64)
    bucket = torch.where(n < half, n, widening.clamp(max=buckets - 1))
    return tuple(bucket.tolist())


class RelativeBias(nn.Module):
    """A learned number per head and bucket of `key position - query position`; one table for all layers of a stack.

    The encoder (`bidirectional`) spends half of the buckets on keys to the right; the decoder never sees those.
    Only differences of positions count, so packed rows may use the index in the row.
    """

    def __init__(self, config: T5Config, *, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.side = config.relative_attention_num_buckets // (2 if bidirectional else 1)
        self.table = distance_buckets(self.side, config.relative_attention_max_distance)
        self.weight = unfilled(config.relative_attention_num_buckets, config.num_heads)

    def bucket(self, relative: Tensor) -> Tensor:
        """The bucket of each `key position - query position`, int64, of the same shape."""
        table = torch.tensor(self.table, device=relative.device)
        if not self.bidirectional:
            return table[(-relative).clamp(0, len(self.table) - 1)]
        return table[relative.abs().clamp(max=len(self.table) - 1)] + (relative > 0) * self.side

    def by_offset(self, relative: Tensor) -> Tensor:
        """[count] relative positions -> [heads, count] biases."""
        return functional.embedding(self.bucket(relative), self.weight).t()

    def forward(self, query_length: int, key_length: int) -> Tensor:
        """[1, heads, query_length, key_length], for queries and keys that both begin at position 0."""
        offsets = torch.arange(1 - query_length, key_length, device=self.weight.device)
        # The bias is constant along diagonals: a window of offsets slides one step left per query.
        windows = self.by_offset(offsets).unfold(1, key_length, 1)
        return windows.flip(1)[None]


def mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where a pair may see each other, `MASKED` elsewhere; `visible` is bool."""
    return (~visible).to(dtype) * MASKED


def same_segment(query_segments: Tensor, key_segments: Tensor) -> Tensor:
    """bool [batch, 1, queries, keys]: whether both belong to one segment (0, padding, is a segment too)."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def causal(length: int, device: torch.device) -> Tensor:
    """bool [1, 1, length, length]: whether the key is not after the query."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v, written out; the reference for the fused kernels.

    q [batch, heads, queries, d_kv], k and v [batch, heads, keys, d_kv]; bias broadcasts to the scores,
    [batch, heads, queries, keys].
    """
    # The softmax kernel computes in float32 whatever the dtype, and rounds once.
    return torch.softmax(q @ k.transpose(-1, -2) + bias, dim=-1) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The same by torch's fused kernels, where there is one for the device."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


ATTENTION: Mapping[AttentionKind, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"sdpa": sdpa_attention, "eager": eager_attention}
)


class Attention(nn.Module):
    """Multi-head attention without biases and without 1 / sqrt(d_kv), which the initialisation of q folds in.

    `site` numbers the dropout of the attention weights.
    """

    def __init__(self, config: T5Config, site: int, kind: AttentionKind) -> None:
        super().__init__()
        self.site = site
        self.heads = config.num_heads
        self.attend = ATTENTION[kind]
        self.q = Linear(config.d_model, config.inner)
        self.k = Linear(config.d_model, config.inner)
        self.v = Linear(config.d_model, config.inner)
        self.o = Linear(config.inner, config.d_model)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What can be looked at: [batch, keys, d_model] -> twice [batch, heads, keys, d_kv]."""
        return self._split(self.k(memory)), self._split(self.v(memory))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, dropout: Dropout | None) -> Tensor:
        """x [batch, queries, d_model] looks at keys and values -> [batch, queries, d_model]."""
        if dropout is not None:
            values = values * dropout.value_rows(self.site, self.heads, values.shape[2], values.dtype)
        heads = self.attend(self._split(self.q(x)), keys, values, bias)
        # [batch, heads, queries, d_kv] -> [batch, queries, heads * d_kv]
        out: Tensor = self.o(heads.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        # [batch, length, heads * d_kv] -> [batch, heads, length, d_kv]
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
