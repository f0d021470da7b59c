"""T5 1.0 and 1.1, read from top to bottom: layers, stacks, the whole (Raffel et al. 2020, section 2.1).

Every sublayer is `x + drop(f(norm(x)))`. Positions enter only through the relative bias of the self-attentions.
Parameters and activations have one dtype; norms, softmax and logits are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixtura.models.t5.attention import ATTENTION, Attention, AttentionKind, RelativeBias, causal, mask, same_segment
from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout, add_dropped, drop
from mixtura.models.t5.layers import Embedding, Linear, RMSNorm, feed_forward

PAD_ID = 0
"""Padding in both stacks, and the decoder's first input."""


@dataclass
class LayerCache:
    """What one decoder layer keeps between steps, each [batch, heads, positions, d_kv].

    `keys` and `values` have room for every position that will be decoded.
    """

    keys: Tensor
    values: Tensor
    cross_keys: Tensor
    cross_values: Tensor

    def write(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one position, and gives everything up to it."""
        self.keys[:, :, position : position + 1] = keys
        self.values[:, :, position : position + 1] = values
        return self.keys[:, :, : position + 1], self.values[:, :, : position + 1]

    def select(self, rows: Tensor) -> LayerCache:
        """These rows, as in `DecoderCache.select`."""
        return LayerCache(self.keys[rows], self.values[rows], self.cross_keys[rows], self.cross_values[rows])


@dataclass
class DecoderCache:
    """What is kept between the steps of decoding a batch."""

    layers: list[LayerCache]

    cross_bias: Tensor
    """[batch, 1, 1, source length]: which encoder positions may be seen."""

    distance_bias: Tensor
    """[heads, max_length]: the decoder's relative bias by distance to the left, the farthest first."""

    length: int = 0
    """Positions decoded so far."""

    @property
    def max_length(self) -> int:
        """Positions there is room for."""
        return self.distance_bias.shape[1]

    def select(self, rows: Tensor) -> DecoderCache:
        """The cache of these rows (int64, in any order, repeats allowed)."""
        layers = [layer.select(rows) for layer in self.layers]
        return DecoderCache(layers, self.cross_bias[rows], self.distance_bias, self.length)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: T5Config, sites: Iterator[int], attention: AttentionKind) -> None:
        super().__init__()
        self.self_attention_norm = RMSNorm(config)
        self.self_attention = Attention(config, next(sites), attention)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = feed_forward(config, next(sites))
        self.self_attention_site, self.feed_forward_site = next(sites), next(sites)

    def forward(self, x: Tensor, bias: Tensor, dropout: Dropout | None) -> Tensor:
        """[batch, length, d_model] -> the same; `bias` holds the position bias and the mask."""
        y = self.self_attention_norm(x)
        y = self.self_attention(y, *self.self_attention.keys_values(y), bias, dropout)
        x = add_dropped(x, y, self.self_attention_site, dropout)
        y = self.feed_forward(self.feed_forward_norm(x), dropout)
        return add_dropped(x, y, self.feed_forward_site, dropout)


class DecoderLayer(nn.Module):
    """Self-attention, attention over what the encoder made, then feed-forward."""

    def __init__(self, config: T5Config, sites: Iterator[int], attention: AttentionKind) -> None:
        super().__init__()
        self.self_attention_norm = RMSNorm(config)
        self.self_attention = Attention(config, next(sites), attention)
        self.cross_attention_norm = RMSNorm(config)
        self.cross_attention = Attention(config, next(sites), attention)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = feed_forward(config, next(sites))
        self.self_attention_site, self.cross_attention_site = next(sites), next(sites)
        self.feed_forward_site = next(sites)

    def forward(self, x: Tensor, encoded: Tensor, bias: Tensor, cross_bias: Tensor, dropout: Dropout | None) -> Tensor:
        """x [batch, length, d_model] -> the same; `cross_bias` masks positions of `encoded`."""
        y = self.self_attention_norm(x)
        y = self.self_attention(y, *self.self_attention.keys_values(y), bias, dropout)
        x = add_dropped(x, y, self.self_attention_site, dropout)
        return self._look_and_think(x, self.cross_attention.keys_values(encoded), cross_bias, dropout)

    def step(self, x: Tensor, cache: LayerCache, position: int, bias: Tensor, cross_bias: Tensor) -> Tensor:
        """One position [batch, 1, d_model], which sees itself and what the cache holds."""
        y = self.self_attention_norm(x)
        keys, values = cache.write(position, *self.self_attention.keys_values(y))
        x = x + self.self_attention(y, keys, values, bias, None)
        return self._look_and_think(x, (cache.cross_keys, cache.cross_values), cross_bias, None)

    def _look_and_think(
        self, x: Tensor, encoded: tuple[Tensor, Tensor], cross_bias: Tensor, dropout: Dropout | None
    ) -> Tensor:
        y = self.cross_attention(self.cross_attention_norm(x), *encoded, cross_bias, dropout)
        x = add_dropped(x, y, self.cross_attention_site, dropout)
        y = self.feed_forward(self.feed_forward_norm(x), dropout)
        return add_dropped(x, y, self.feed_forward_site, dropout)


class Encoder(nn.Module):
    """The stack that sees a segment from both sides."""

    def __init__(self, config: T5Config, sites: Iterator[int], attention: AttentionKind) -> None:
        super().__init__()
        self.relative_bias = RelativeBias(config, bidirectional=True)
        self.input_site = next(sites)
        layers = [EncoderLayer(config, sites, attention) for _ in range(config.num_layers)]
        self.layers = cast("Sequence[EncoderLayer]", nn.ModuleList(layers))
        self.final_norm = RMSNorm(config)
        self.output_site = next(sites)

    def forward(self, x: Tensor, segments: Tensor, dropout: Dropout | None) -> Tensor:
        """x [batch, length, d_model], segments [batch, length] -> [batch, length, d_model]."""
        length = x.shape[1]
        bias = self.relative_bias(length, length) + mask(same_segment(segments, segments), x.dtype)
        x = drop(x, self.input_site, dropout)
        for layer in self.layers:
            x = layer(x, bias, dropout)
        return drop(self.final_norm(x), self.output_site, dropout)


class Decoder(nn.Module):
    """The stack that sees what came before in the segment, and the encoder's output."""

    def __init__(self, config: T5Config, sites: Iterator[int], attention: AttentionKind) -> None:
        super().__init__()
        self.relative_bias = RelativeBias(config, bidirectional=False)
        self.input_site = next(sites)
        layers = [DecoderLayer(config, sites, attention) for _ in range(config.num_decoder_layers)]
        self.layers = cast("Sequence[DecoderLayer]", nn.ModuleList(layers))
        self.final_norm = RMSNorm(config)
        self.output_site = next(sites)

    def forward(
        self, x: Tensor, encoded: Tensor, visible: Tensor, cross_visible: Tensor, dropout: Dropout | None
    ) -> Tensor:
        """x [batch, length, d_model]; `visible` and `cross_visible` broadcast to [batch, 1, queries, keys]."""
        length = x.shape[1]
        bias = self.relative_bias(length, length) + mask(visible, x.dtype)
        cross_bias = mask(cross_visible, x.dtype)
        x = drop(x, self.input_site, dropout)
        for layer in self.layers:
            x = layer(x, encoded, bias, cross_bias, dropout)
        return drop(self.final_norm(x), self.output_site, dropout)

    def start(self, encoded: Tensor, visible: Tensor, max_length: int) -> DecoderCache:
        """A cache with room for `max_length` positions; visible [batch, source length] is bool."""
        layers = []
        for layer in self.layers:
            keys, values = layer.cross_attention.keys_values(encoded)
            batch, heads, _, d_kv = keys.shape
            room = (batch, heads, max_length, d_kv)
            layers.append(LayerCache(keys.new_zeros(room), keys.new_zeros(room), keys, values))
        farthest_first = torch.arange(1 - max_length, 1, device=encoded.device)
        cross_bias = mask(visible[:, None, None], encoded.dtype)
        return DecoderCache(layers, cross_bias, self.relative_bias.by_offset(farthest_first))

    def step(self, x: Tensor, cache: DecoderCache) -> Tensor:
        """One position [batch, 1, d_model] after those in the cache, which grows by it."""
        position = cache.length
        bias = cache.distance_bias[:, None, cache.max_length - position - 1 :][None]
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer.step(x, layer_cache, position, bias, cache.cross_bias)
        cache.length = position + 1
        out: Tensor = self.final_norm(x)
        return out


class T5(nn.Module):
    """The encoder-decoder. Its parameters are NaN until `initialize` or a loaded state fills them.

    `attention` chooses between torch's fused kernels and the same mathematics written out.

    Tokens and segment ids are integers [batch, length]. Segments count from 1; 0 is padding. A position sees only
    positions of its own segment. Without segment ids a row is one segment: the encoder's is where its tokens are not 0,
    and the decoder sees everything before it.

    `dropout_keys` (int64 [batch], one key per row) switch dropout on; see `mixtura.models.t5.dropout`.
    """

    def __init__(self, config: T5Config, *, attention: AttentionKind = "sdpa") -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise ValueError(f"attention is '{attention}'; choose one of {', '.join(map(repr, ATTENTION))}")
        self.config = config
        sites = count()
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config, sites, attention)
        self.decoder = Decoder(config, sites, attention)
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)

    def forward(
        self,
        encoder_input_tokens: Tensor,
        decoder_input_tokens: Tensor,
        *,
        encoder_segment_ids: Tensor | None = None,
        decoder_segment_ids: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token at every decoder position, float32 [batch, target length, vocab_size]."""
        if (encoder_segment_ids is None) != (decoder_segment_ids is None):
            given, missing = ("encoder", "decoder") if decoder_segment_ids is None else ("decoder", "encoder")
            raise ValueError(f"{given}_segment_ids came without {missing}_segment_ids; give both or neither")
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, dropout_keys=dropout_keys)
        hidden = self.decode(
            decoder_input_tokens,
            encoded,
            _segments(encoder_input_tokens, encoder_segment_ids),
            decoder_segment_ids,
            dropout_keys=dropout_keys,
        )
        return self.unembed(hidden)

    def encode(
        self, tokens: Tensor, segment_ids: Tensor | None = None, *, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """What the decoder looks at, [batch, length, d_model]."""
        segments, dropout = _segments(tokens, segment_ids), self._dropout(dropout_keys)
        encoded: Tensor = self.encoder(self.embedding(tokens), segments, dropout)
        return encoded

    def decode(
        self,
        tokens: Tensor,
        encoded: Tensor,
        encoder_segment_ids: Tensor,
        segment_ids: Tensor | None = None,
        *,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of all decoder positions at once, [batch, length, d_model]; `unembed` makes them logits."""
        visible = causal(tokens.shape[1], tokens.device)
        if segment_ids is None:
            cross_visible = (encoder_segment_ids != PAD_ID)[:, None, None]
        else:
            visible = visible & same_segment(segment_ids, segment_ids)
            cross_visible = same_segment(segment_ids, encoder_segment_ids)
        dropout = self._dropout(dropout_keys)
        hidden: Tensor = self.decoder(self.embedding(tokens), encoded, visible, cross_visible, dropout)
        return hidden

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [..., d_model], float32 [..., vocab_size]; tied ones are scaled by d_model^-0.5."""
        hidden = hidden.float()
        if self.head is not None:
            return functional.linear(hidden, self.head.weight.float())
        return functional.linear(hidden * self.config.d_model**-0.5, self.embedding.weight.float())

    def start_decoding(self, encoded: Tensor, encoder_segment_ids: Tensor, max_length: int) -> DecoderCache:
        """A cache for decoding up to `max_length` tokens one by one; every row is one segment."""
        return self.decoder.start(encoded, encoder_segment_ids != PAD_ID, max_length)

    def decode_next(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits after one more token per row: tokens [batch] -> float32 [batch, vocab_size]; the cache grows by it."""
        if cache.length >= cache.max_length:
            raise ValueError(
                f"position {cache.length} was asked of a decoder cache with room for {cache.max_length}; "
                "start it with a larger max_length"
            )
        return self.unembed(self.decoder.step(self.embedding(tokens[:, None]), cache))[:, 0]

    def _dropout(self, keys: Tensor | None) -> Dropout | None:
        return None if keys is None or self.config.dropout_rate == 0.0 else Dropout(keys, self.config.dropout_rate)


def _segments(tokens: Tensor, segment_ids: Tensor | None) -> Tensor:
    return (tokens != PAD_ID).to(torch.int32) if segment_ids is None else segment_ids
