"""Layers, and stacks of them: one set for encoders, decoders, and stacks that are alone.

A stack whose layers have cross-attention can still be run without it, which is how stacks share their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixtura.models.t5.attention import (
    Attention,
    AttentionKind,
    Bias,
    DenseBias,
    RelativeBias,
    Visible,
    mask,
    score_bias,
)
from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout, add_dropped, drop
from mixtura.models.t5.layers import RMSNorm, adapter, feed_forward


@dataclass(frozen=True)
class Computing:
    """How a stack computes; none of it changes what it computes."""

    attention: AttentionKind = "sdpa"

    compile: bool = False
    """Whether every layer is compiled by itself, when it first runs."""

    activation_checkpointing: bool = False
    """Whether only a layer's input is kept for the backward pass, which then runs the layer once more."""


@dataclass
class LayerCache:
    """What one decoder layer keeps between steps, each [batch, heads, positions, d_kv].

    `keys` and `values` have room for every position that will be decoded.
    """

    keys: Tensor
    values: Tensor
    cross: tuple[Tensor, Tensor] | None = None

    def write(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores what begins at a position, and gives everything up to its end."""
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor) -> LayerCache:
        """These rows, as in `DecoderCache.select`."""
        cross = None if self.cross is None else (self.cross[0][rows], self.cross[1][rows])
        return LayerCache(self.keys[rows], self.values[rows], cross)


@dataclass
class DecoderCache:
    """What is kept between the steps of decoding a batch."""

    layers: list[LayerCache]

    distance_bias: Tensor
    """[heads, max_length]: the relative bias by distance to the left, the farthest first."""

    own_mask: Tensor | None = None
    """[batch, 1, 1, max_length]: which positions of the stack itself may be seen, of those up to the present one."""

    cross_mask: Tensor | None = None
    """[batch, 1, 1, source length]: which encoder positions may be seen."""

    length: int = 0
    """Positions so far."""

    @property
    def max_length(self) -> int:
        """Positions there is room for."""
        return self.distance_bias.shape[1]

    def select(self, rows: Tensor) -> DecoderCache:
        """The cache of these rows (int64, in any order, repeats allowed)."""
        own, cross = (None if one is None else one[rows] for one in (self.own_mask, self.cross_mask))
        return replace(self, layers=[layer.select(rows) for layer in self.layers], own_mask=own, cross_mask=cross)

    def bias_of_next(self, count: int) -> Tensor:
        """What is added to the scores of the next positions, which see themselves and all before them.

        Broadcasts to [batch, heads, count, positions].
        """
        begin, end = self.length, self.length + count
        if count == 1:
            bias = self.distance_bias[:, None, self.max_length - end :][None]
        else:
            positions = torch.arange(end, device=self.distance_bias.device)
            left = positions[begin:, None] - positions  # [count, end]
            later = mask(left >= 0, self.distance_bias.dtype)
            bias = (self.distance_bias[:, self.max_length - 1 - left.clamp(min=0)] + later)[None]
        return bias if self.own_mask is None else bias + self.own_mask[..., :end]

    def follow(self, parents: Tensor) -> None:
        """Give every row what its parent (int64) has seen, in place; both have the same encoder output."""
        if torch.equal(parents, torch.arange(len(parents), device=parents.device)):
            return
        for layer in self.layers:
            for seen in (layer.keys, layer.values):
                seen[:, :, : self.length] = seen[parents, :, : self.length]


class _Site(IntEnum):
    """Where a layer drops out."""

    SELF_ATTENTION_WEIGHTS = 0
    CROSS_ATTENTION_WEIGHTS = 1
    FEED_FORWARD_HIDDEN = 2
    SELF_ATTENTION = 3
    CROSS_ATTENTION = 4
    FEED_FORWARD = 5
    ADAPTER_HIDDEN = 6
    ADAPTER = 7


class Layer(nn.Module):
    """Self-attention, in a decoder attention over what an encoder made, then feed-forward, and maybe an adapter.

    Every sublayer reads the norm of what came before, and adds its output to that after dropout.
    """

    def __init__(self, config: T5Config, attention: AttentionKind, *, cross: bool) -> None:
        super().__init__()
        self.self_attention_norm = RMSNorm(config)
        self.self_attention = Attention(config, _Site.SELF_ATTENTION_WEIGHTS, attention)
        self.cross_attention: Attention | None = None
        if cross:
            self.cross_attention_norm = RMSNorm(config)
            self.cross_attention = Attention(config, _Site.CROSS_ATTENTION_WEIGHTS, attention)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = feed_forward(config, _Site.FEED_FORWARD_HIDDEN)
        self.adapter = None
        if config.adapter_size is not None:
            self.adapter_norm = RMSNorm(config)
            self.adapter = adapter(config, config.adapter_size, _Site.ADAPTER_HIDDEN)

    def forward(
        self,
        x: Tensor,
        bias: Bias,
        dropout: Dropout | None,
        encoded: Tensor | None = None,
        cross_bias: Bias | None = None,
    ) -> Tensor:
        """x [batch, length, d_model] -> the same; cross-attention is left out where nothing `encoded` is given."""
        y = self.self_attention_norm(x)
        y = self.self_attention(y, *self.self_attention.keys_values(y), bias, dropout)
        x = add_dropped(x, y, _Site.SELF_ATTENTION, dropout)
        if encoded is not None and cross_bias is not None:
            assert self.cross_attention is not None
            x = self._cross(x, self.cross_attention.keys_values(encoded), cross_bias, dropout)
        return self._think(x, dropout)

    def go_on(self, x: Tensor, cache: LayerCache, position: int, bias: Tensor, cross_mask: Tensor | None) -> Tensor:
        """The next positions [batch, count, d_model], which see each other as `bias` says, and what the cache holds."""
        y = self.self_attention_norm(x)
        keys, values = cache.write(position, *self.self_attention.keys_values(y))
        x = x + self.self_attention(y, keys, values, DenseBias(bias), None)
        if cache.cross is not None and cross_mask is not None:
            x = self._cross(x, cache.cross, DenseBias(cross_mask), None)
        return self._think(x, None)

    def _cross(self, x: Tensor, encoded: tuple[Tensor, Tensor], bias: Bias, dropout: Dropout | None) -> Tensor:
        assert self.cross_attention is not None
        y = self.cross_attention(self.cross_attention_norm(x), *encoded, bias, dropout)
        return add_dropped(x, y, _Site.CROSS_ATTENTION, dropout)

    def _think(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        x = add_dropped(x, self.feed_forward(self.feed_forward_norm(x), dropout), _Site.FEED_FORWARD, dropout)
        if self.adapter is not None:
            x = add_dropped(x, self.adapter(self.adapter_norm(x), dropout), _Site.ADAPTER, dropout)
        return x


class Stack(nn.Module):
    """Layers with one position bias for all of them, and a norm at their end."""

    def __init__(self, config: T5Config, layers: int, computing: Computing, *, cross: bool = False) -> None:
        super().__init__()
        self.computing = computing
        self.relative_bias = RelativeBias(config)
        made = [Layer(config, computing.attention, cross=cross) for _ in range(layers)]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(made))
        self.final_norm = RMSNorm(config)
        self.sites = 2 + layers * len(_Site)
        if computing.compile:
            for layer in made:
                layer.compile(dynamic=False)

    def forward(
        self,
        x: Tensor,
        visible: Visible,
        dropout: Dropout | None,
        *,
        bidirectional: bool,
        encoded: Tensor | None = None,
        cross_visible: Visible | None = None,
    ) -> Tensor:
        """x [batch, length, d_model] -> the same.

        `encoded` is what a decoder looks at, [batch, source length, d_model]; `bidirectional` chooses the buckets of
        the position bias; `dropout` has the stack's own `sites`: its input, its output, then its layers'.
        """
        kind, heads = self.computing.attention, self.relative_bias.weight.shape[1]
        bias = score_bias(kind, self.relative_bias(x.shape[1], bidirectional=bidirectional), visible, heads, x.dtype)
        cross: tuple[Any, ...] = ()
        if encoded is not None and cross_visible is not None:
            cross = (encoded, score_bias(kind, None, cross_visible, heads, x.dtype))
        x = drop(x, 0, dropout)
        again = self.computing.activation_checkpointing and torch.is_grad_enabled()
        for number, layer in enumerate(self.layers):
            own = None if dropout is None else dropout.part(2 + number * len(_Site), len(_Site))
            if again:
                # Dropout is a function of its keys: there is no generator whose state has to be kept.
                x = checkpoint(layer, x, bias, own, *cross, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, bias, own, *cross)
        return drop(self.final_norm(x), 1, dropout)

    def start(self, example: Tensor, max_length: int, *, bidirectional: bool) -> DecoderCache:
        """An empty cache with room for `max_length` positions; `example` [batch, ...] gives rows, dtype and device."""
        layers = []
        for layer in self.layers:
            heads, d_kv = layer.self_attention.heads, layer.self_attention.d_kv
            room = example.new_zeros(2, example.shape[0], heads, max_length, d_kv)
            layers.append(LayerCache(room[0], room[1]))
        farthest_first = torch.arange(1 - max_length, 1, device=example.device)
        return DecoderCache(layers, self.relative_bias.by_offset(farthest_first, bidirectional=bidirectional))

    def look_at(
        self, parts: Sequence[tuple[Tensor, Tensor]], visible: Tensor, max_length: int, *, dtype: torch.dtype
    ) -> DecoderCache:
        """A decoder's empty cache, with room for `max_length` positions.

        `parts` are rows (int64) and what was encoded of them, [rows, up to the source length, d_model]; visible [batch,
        source length] is bool.
        """
        batch, source_length = visible.shape
        cache = self.start(torch.empty(batch, dtype=dtype, device=visible.device), max_length, bidirectional=False)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            assert layer.cross_attention is not None
            # Read at every step, head by head.
            shape = (batch, layer.cross_attention.heads, source_length, layer.cross_attention.d_kv)
            both = torch.zeros(2, *shape, dtype=dtype, device=visible.device)
            for rows, encoded in parts:
                for room, made in zip(both, layer.cross_attention.keys_values(encoded), strict=True):
                    room[rows, :, : encoded.shape[1]] = made
            layer_cache.cross = both[0], both[1]
        cache.cross_mask = mask(visible[:, None, None], dtype)
        return cache

    def go_on(self, x: Tensor, cache: DecoderCache, bias: Tensor | None = None) -> Tensor:
        """The next positions [batch, count, d_model] after those in the cache, which grows by them.

        `bias` broadcasts to [batch, heads, count, positions]; without it each position sees itself and all before it.
        """
        begin, count = cache.length, x.shape[1]
        if bias is None:
            bias = cache.bias_of_next(count)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer.go_on(x, layer_cache, begin, bias, cache.cross_mask)
        cache.length = begin + count
        out: Tensor = self.final_norm(x)
        return out
