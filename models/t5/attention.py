"""Attention with T5's relative position bias.

What is added to the scores (position bias and masks) is made once per stack and shared by its layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout
from mixtura.models.t5.layers import Linear, product_dtype, unfilled

AttentionKind = Literal["sdpa", "eager", "flex"]

ATTENTION_KINDS: tuple[AttentionKind, ...] = ("sdpa", "eager", "flex")

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

    Where attention is `bidirectional` half of the buckets are for keys to the right; else those are never seen, and
    all buckets are for keys to the left. Only differences of positions count, so packed rows may use the index in the
    row.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        self.both_sides = distance_buckets(buckets // 2, distance)
        self.left_only = distance_buckets(buckets, distance)
        self.weight = unfilled(buckets, config.num_heads)

    def bucket(self, relative: Tensor, *, bidirectional: bool) -> Tensor:
        """The bucket of each `key position - query position`, int64, of the same shape."""
        if not bidirectional:
            table = torch.tensor(self.left_only, device=relative.device)
            return table[(-relative).clamp(0, len(table) - 1)]
        table = torch.tensor(self.both_sides, device=relative.device)
        side = self.weight.shape[0] // 2
        return table[relative.abs().clamp(max=len(table) - 1)] + (relative > 0) * side

    def by_offset(self, relative: Tensor, *, bidirectional: bool) -> Tensor:
        """[count] relative positions -> [heads, count] biases."""
        return functional.embedding(self.bucket(relative, bidirectional=bidirectional), self.weight).t()

    def forward(self, length: int, *, bidirectional: bool) -> Tensor:
        """[heads, length, length]: queries, then keys."""
        offsets = torch.arange(1 - length, length, device=self.weight.device)
        # The bias is constant along diagonals: a window of offsets slides one step left per query.
        windows = self.by_offset(offsets, bidirectional=bidirectional).unfold(1, length, 1)
        return windows.flip(1)


_SMALL_BLOCK = 4096
"""Pairs up to which neighbouring segments are attended to at once: calls would cost more than what is masked."""


class Block(NamedTuple):
    """Neighbouring queries of a row, and all the keys that any of them may see."""

    row: int
    queries: slice
    keys: slice

    def joined(self, other: Block) -> Block | None:
        """Both as one, if they are neighbours and small."""
        queries, keys = slice(self.queries.start, other.queries.stop), slice(self.keys.start, other.keys.stop)
        pairs = (queries.stop - queries.start) * (keys.stop - keys.start)
        if self.keys.stop != other.keys.start or pairs > _SMALL_BLOCK:
            return None
        return Block(self.row, queries, keys)


@dataclass(frozen=True)
class Visible:
    """Which positions a position may see: those of its segment (0, padding, is a segment too); in a causal stack none
    after itself, except where both are of a prefix."""

    query_segments: Tensor
    """[batch, queries]"""

    key_segments: Tensor
    """[batch, keys]"""

    causal: bool = False

    prefix: Tensor | None = None
    """bool [batch, positions]"""

    def dense(self) -> Tensor:
        """bool [batch, 1, queries, keys]."""
        query, key = (
            torch.arange(segments.shape[1], device=segments.device)
            for segments in (self.query_segments, self.key_segments)
        )
        rows = torch.arange(self.query_segments.shape[0], device=self.query_segments.device)
        return self.sees(rows[:, None, None], rows, query[:, None], key)[:, None]

    def sees(self, row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The same at given places, in the form that FlexAttention asks for."""
        seen = self.query_segments[row, query] == self.key_segments[row, key]
        if not self.causal:
            return seen
        behind: Tensor = query >= key
        if self.prefix is not None:
            behind = behind | (self.prefix[row, query] & self.prefix[row, key])
        return seen & behind

    def blocks(self) -> list[Block]:
        """Blocks that hold every pair that may see each other: a packed row is many short ones.

        A query that may see nothing is in a block with all keys, among which it makes no difference.
        """
        blocks: list[Block] = []
        for row, (queries, keys) in enumerate(zip(self.query_segments, self.key_segments, strict=True)):
            whole = slice(0, len(keys))
            of_queries, of_keys = _runs(queries), _runs(keys)
            if of_queries is None or of_keys is None:
                blocks.append(Block(row, slice(0, len(queries)), whole))
                continue
            of_row: list[Block] = []
            for segment, run in of_queries.items():
                block = Block(row, run, of_keys.get(segment, whole))
                joined = of_row[-1].joined(block) if of_row else None
                if joined is not None:
                    of_row.pop()
                of_row.append(joined or block)
            blocks += of_row
        return blocks


def _runs(segments: Tensor) -> dict[int, slice] | None:
    """Where each segment of a row [length] is; none if one is in several places."""
    found, counts = torch.unique_consecutive(segments, return_counts=True)
    ends = counts.cumsum(0).tolist()
    runs = dict(zip(found.tolist(), map(slice, [0, *ends], ends), strict=False))
    return runs if len(runs) == len(ends) else None


@dataclass(frozen=True)
class FlexBias:
    """What FlexAttention adds to the scores: one table for all rows, and which pairs of a row may see each other."""

    table: Tensor | None
    """float32 [heads, queries, keys]; none where there is no position bias."""

    blocks: BlockMask
    """Blocks of pairs that see nothing of each other are not computed."""


@dataclass(frozen=True)
class DenseBias:
    """What is added to the scores, for each row."""

    added: Tensor
    """Broadcasts to [batch, heads, queries, keys]: position bias and mask."""

    position: Tensor | None = None
    """[heads, queries, keys]: what of it is learned, where its gradient is not taken from `added`."""

    blocks: Sequence[Block] = ()
    """Where `added` does not mask, for attention that is trained on a CPU."""


Bias = DenseBias | FlexBias
"""What is added to the scores of all layers of a stack."""


def score_bias(kind: AttentionKind, position: Tensor | None, visible: Visible, heads: int, dtype: torch.dtype) -> Bias:
    """The bias of a stack, made once for its layers; position [heads, queries, keys]."""
    if kind == "flex":
        (batch, queries), keys = visible.query_segments.shape, visible.key_segments.shape[1]
        device = str(visible.query_segments.device)

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return visible.sees(row, head, query, key)

        blocks = create_block_mask(sees, batch, None, queries, keys, device=device)
        return FlexBias(None if position is None else position.float(), blocks)
    dense = visible.dense()
    if not dense.is_cuda:
        added = mask(dense, dtype) if position is None else mask(dense, dtype) + position.detach()
        return DenseBias(added, position, visible.blocks() if kind == "sdpa" and torch.is_grad_enabled() else ())
    keys = dense.shape[-1]
    # CUDA's fused kernels read biases in rows of 16 bytes, and would else be left for unfused ones in float32.
    padding = (0, -keys % 8)
    bias = mask(functional.pad(dense, padding), dtype)
    bias = bias.expand(-1, heads, -1, -1) if position is None else bias + functional.pad(position, padding)
    return DenseBias(bias[..., :keys])


def mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where a pair may see each other, `MASKED` elsewhere; `visible` is bool."""
    return (~visible).to(dtype) * MASKED


def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias, dropped: Tensor | None = None) -> Tensor:
    """softmax(q k^T + bias) v, written out; the reference for the fused kernels.

    q [batch, heads, queries, d_kv], k and v [batch, heads, keys, d_kv]; the bias broadcasts to the scores,
    [batch, heads, queries, keys], which is the shape of the mask for the weights, too.
    """
    assert isinstance(bias, DenseBias)
    # The softmax kernel computes in float32 whatever the dtype, and rounds once.
    weights = torch.softmax(q @ k.transpose(-1, -2) + _with_gradient(bias), dim=-1)
    return (weights if dropped is None else weights * dropped) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """The same by torch's fused kernels."""
    assert isinstance(bias, DenseBias)
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # Blocks differ from batch to batch: a compiled layer would be compiled anew for each.
        blocks = () if torch.compiler.is_compiling() else bias.blocks
        out: Tensor = _CpuAttention.apply(q, k, v, bias.added, bias.position, blocks)  # type: ignore[no-untyped-call]
        return out
    if q.device.type == "cpu" and q.shape[2] == 1:
        # For one query the fused kernel takes twice the time of two products in fp32, ten times in bf16.
        return eager_attention(q, k, v, bias)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.added, scale=1.0)


def _with_gradient(bias: DenseBias) -> Tensor:
    """`added`, with the gradient of what is learned of it."""
    if bias.position is None or not bias.position.requires_grad:
        return bias.added
    return bias.added + (bias.position - bias.position.detach())


class _CpuAttention(torch.autograd.Function):
    """Torch's fused kernel for a CPU, which has no gradient of a bias: the backward pass makes the weights again, block
    by block, so that they stay in the processor's cache and only log Z is kept. The gradient of the position bias is
    summed over rows at once."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, added: Tensor, position: Tensor | None, blocks: Sequence[Block]
    ) -> Tensor:
        """As `eager_attention`; without blocks every row is one."""
        (batch, heads, queries, _), keys = q.shape, k.shape[2]
        blocks = blocks or [Block(row, slice(0, queries), slice(0, keys)) for row in range(batch)]
        dtype = product_dtype(q)
        cast_q, cast_k, cast_v, cast_added = (tensor.to(dtype) for tensor in (q, k, v, added))
        out, log_z = _like(q), q.new_empty(batch, heads, queries, 1, dtype=torch.float32)
        for row, of_queries, of_keys in blocks:
            one = slice(row, row + 1)
            block_out, block_log_z = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                cast_q[one, :, of_queries],
                cast_k[one, :, of_keys],
                cast_v[one, :, of_keys],
                0.0,
                False,
                attn_mask=cast_added[one if added.shape[0] > 1 else slice(1), :, of_queries, of_keys],
                scale=1.0,
            )
            out[row, :, of_queries], log_z[row, :, of_queries, 0] = block_out[0], block_log_z[0]
        ctx.save_for_backward(q, k, v, added, out, log_z)
        ctx.position_shape = None if position is None or not position.requires_grad else position.shape
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of queries, keys, values and the position bias."""
        q, k, v, added, out, log_z = ctx.saved_tensors
        dtype = product_dtype(q)
        added = added.expand(*q.shape[:-1], k.shape[2])
        shift = (gradient.float() * out).sum(-1, keepdim=True)
        cast_q, cast_k, cast_v, gradient = (tensor.to(dtype) for tensor in (q, k, v, gradient))
        of_q, of_k, of_v = _like(q), _like(k).zero_(), _like(v).zero_()
        of_position = None if ctx.position_shape is None else q.new_zeros(ctx.position_shape, dtype=torch.float32)
        for row, queries, keys in ctx.blocks:
            block_q, block_gradient = cast_q[row, :, queries], gradient[row, :, queries]
            block_k, block_v = cast_k[row, :, keys], cast_v[row, :, keys]
            weights = (block_q @ block_k.transpose(1, 2)).float()
            weights.add_(added[row, :, queries, keys]).sub_(log_z[row, :, queries]).exp_()
            of_v[row, :, keys] += weights.to(dtype).transpose(1, 2) @ block_gradient
            of_scores = (block_gradient @ block_v.transpose(1, 2)).float()
            of_scores.sub_(shift[row, :, queries]).mul_(weights)
            if of_position is not None:
                of_position[:, queries, keys] += of_scores
            of_scores = of_scores.to(dtype)
            of_q[row, :, queries] = of_scores @ block_k
            of_k[row, :, keys] += of_scores.transpose(1, 2) @ block_q
        if of_position is not None:
            of_position = of_position.to(q.dtype)
        return of_q, of_k, of_v, None, of_position, None


def _like(x: Tensor) -> Tensor:
    """An empty tensor [batch, heads, length, d_kv], in memory as a product makes it: positions before heads."""
    batch, heads, length, d_kv = x.shape
    return x.new_empty(batch, length, heads, d_kv).transpose(1, 2)


def flex_attention_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """The same by a kernel that is compiled for it, which never has a bias for each row in memory."""
    if isinstance(bias, DenseBias):  # decoding has no kernel of its own
        return sdpa_attention(q, k, v, bias)
    table = bias.table

    def add(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert table is not None
        return score + table[head, query, key]

    if not q.is_cuda and torch.is_grad_enabled() and q.requires_grad:
        raise ValueError("attention 'flex' needs a GPU to train on; set attention to 'sdpa'")
    # A compiled layer takes it in as it is.
    alone = q.is_cuda and not torch.compiler.is_compiling()
    attend: Any = _compiled_flex_attention() if alone else flex_attention
    out: Tensor = attend(
        q,
        k,
        v,
        score_mod=None if table is None else add,
        block_mask=bias.blocks,
        scale=1.0,
        kernel_options=_FLEX_OPTIONS,
    )
    return out


# Fewer than 128 queries, a decoder's row for example, would go to a kernel for decoding one token of each row: it took
# 4.8 ms for the forward pass of 64 rows of 114 queries and 512 keys on an H200, where the backward pass took 0.3.
_FLEX_OPTIONS: Any = {"FORCE_USE_FLEX_ATTENTION": True}


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled


ATTENTION: Mapping[AttentionKind, Callable[[Tensor, Tensor, Tensor, Bias], Tensor]] = MappingProxyType(
    {"sdpa": sdpa_attention, "eager": eager_attention, "flex": flex_attention_with_bias}
)


class Attention(nn.Module):
    """Multi-head attention without biases and without 1 / sqrt(d_kv), which the initialisation of q folds in.

    `site` numbers the dropout of the attention weights.
    """

    def __init__(self, config: T5Config, site: int, kind: AttentionKind) -> None:
        super().__init__()
        self.site = site
        self.heads, self.d_kv = config.num_heads, config.d_kv
        self.attend = ATTENTION[kind]
        self.q = Linear(config.d_model, config.inner)
        self.k = Linear(config.d_model, config.inner)
        self.v = Linear(config.d_model, config.inner)
        self.o = Linear(config.inner, config.d_model)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What can be looked at: [batch, keys, d_model] -> twice [batch, heads, keys, d_kv]."""
        return self._split(self.k(memory)), self._split(self.v(memory))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Bias, dropout: Dropout | None) -> Tensor:
        """x [batch, queries, d_model] looks at keys and values -> [batch, queries, d_model]."""
        queries = self._split(self.q(x))
        if dropout is not None and dropout.over_length == "independent":
            dropped = dropout.pairs(self.site, self.heads, x.shape[1], keys.shape[2], x.dtype)
            heads = eager_attention(queries, keys, values, bias, dropped)
        else:
            if dropout is not None:
                values = values * dropout.value_rows(self.site, self.heads, values.shape[2], values.dtype)
            heads = self.attend(queries, keys, values, bias)
        # [batch, heads, queries, d_kv] -> [batch, queries, heads * d_kv]
        out: Tensor = self.o(heads.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        # [batch, length, heads * d_kv] -> [batch, heads, length, d_kv]
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
