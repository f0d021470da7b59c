"""What the forward pass of a microbatch keeps in memory for its backward pass.

For each position of a sublayer; w is the width of an activation (4 bytes in fp32, 2 in bf16), d the model's, i that of
all heads together, h the number of heads, f the feed-forward's, a the adapter's:

    norm                its input, and that over its root mean square, in fp32       8 d + 4
        fused           its input                                                    w d + 4
    attention           what q, k and v read; q, k, v; what o reads                  w (d + 4 i)
        eager           and the probabilities of all keys                            w h keys
        else            and log Z of each head                                       4 h
    cross-attention     what q reads; q; what o reads; at the encoder's k and v      w (d + 2 i), w 2 i
        eager           and the probabilities of all keys                            w h keys
        else            and log Z of each head                                       4 h
    feed-forward        what wi reads; after relu, and after dropout                 w (d + 2 f)
        gated           both halves, gelu of one, their product after dropout        w (d + 4 f)
    adapter             what wi reads; after relu, and after dropout                 w (d + 2 a)

Every sublayer has a norm. A stack has another at its end, and its output is kept for what reads it. A fused norm is
that of a GPU. Where only adapters and norms are trained, what a frozen matrix reads is not kept. Parameters are not
counted: the backward pass reads them where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixtura.models.t5.config import T5Config

_FULL = 4


@dataclass(frozen=True)
class Microbatch:
    """Rows of one forward pass; a single stack has all its positions in `decoder_length`."""

    rows: int
    encoder_length: int
    decoder_length: int
    targets: int | None = None
    """Positions with a target; all of the decoder's if not given."""


@dataclass(frozen=True)
class Kept:
    """Bytes."""

    activations: int
    """Of layers, embeddings and last norms, until their backward pass."""
    bias: int
    """Of position biases and masks, made once for each stack."""
    head: int
    """Of the loss: a chunk of logits, whose gradient takes their place, and the gradients of hidden states and head,
    which are made while it is there."""
    working: int
    """The most that the backward pass of one layer makes and drops again, estimated; with activation checkpointing also
    what the layer keeps once it is computed again."""


@dataclass(frozen=True)
class _Counting:
    """How a model computes; bytes for each of its parts."""

    config: T5Config
    width: int
    attention: str
    on_gpu: bool

    def norm(self) -> int:
        """For each position."""
        return (self.width if self.on_gpu else 2 * _FULL) * self.config.d_model + _FULL

    def read(self, width: int) -> int:
        """For each position, by a product with a matrix: its gradient needs the input, unless the matrix is frozen."""
        return 0 if self.config.adapter_size is not None else self.width * width

    def scores(self, keys: int) -> int:
        """For each query, the result included, beside q, k and v."""
        heads, inner = self.config.num_heads, self.config.inner
        if self.attention == "eager":
            return self.width * heads * keys + self.read(inner)
        return self.width * inner + _FULL * heads

    def self_attention(self, length: int) -> int:
        """For each position."""
        kept = self.read(self.config.d_model) + 3 * self.width * self.config.inner
        return self.norm() + kept + self.scores(length)

    def cross_attention(self, encoder_length: int) -> int:
        """For each position of the decoder."""
        kept = self.read(self.config.d_model) + self.width * self.config.inner
        return self.norm() + kept + self.scores(encoder_length)

    def feed_forward(self) -> int:
        """For each position."""
        hidden = self.width * self.config.d_ff
        if self.config.feed_forward == "gated-gelu":
            kept = 3 * hidden + self.read(self.config.d_ff)
        else:
            kept = hidden + (self.read(self.config.d_ff) if self.config.dropout_rate > 0 else 0)
        return self.norm() + self.read(self.config.d_model) + kept

    def bias(self, length: int) -> int:
        """For each row: position bias and mask of all pairs, in one tensor as rows are packed."""
        return self.width * self.config.num_heads * length * length

    def adapter(self) -> int:
        """For each position."""
        size = self.config.adapter_size
        if size is None:
            return 0
        return self.norm() + self.width * (self.config.d_model + size * (2 if self.config.dropout_rate > 0 else 1))

    def encoder_layer(self, length: int) -> int:
        """For each position of an encoder, or of a single stack."""
        return self.self_attention(length) + self.feed_forward() + self.adapter()

    def decoder_layer(self, length: int, encoder_length: int) -> int:
        """For each row."""
        keys_and_values = self.width * 2 * self.config.inner
        here = self.encoder_layer(length) + self.cross_attention(encoder_length)
        return length * here + encoder_length * keys_and_values


@dataclass(frozen=True)
class _Stack:
    """One stack of a model: bytes for each row."""

    layers: int
    length: int
    layer: int
    """Of one of its layers."""
    pairs: int
    """Of the biases and masks of its attentions."""


def _stacks(counting: _Counting, batch: Microbatch) -> list[_Stack]:
    config, encoder, decoder = counting.config, batch.encoder_length, batch.decoder_length
    if config.architecture in ("prefix_lm", "lm"):
        layer = decoder * counting.encoder_layer(decoder)
        return [_Stack(config.num_layers, decoder, layer, counting.bias(decoder))]
    layer, cross_mask = counting.decoder_layer(decoder, encoder), counting.width * decoder * encoder
    return [
        _Stack(config.num_layers, encoder, encoder * counting.encoder_layer(encoder), counting.bias(encoder)),
        _Stack(config.num_decoder_layers, decoder, layer, counting.bias(decoder) + cross_mask),
    ]


def kept_bytes(
    config: T5Config,
    batch: Microbatch,
    *,
    width: int,
    attention: Literal["sdpa", "eager", "flex"] = "sdpa",
    activation_checkpointing: bool = False,
    on_gpu: bool = True,
    chunk_tokens: int = 1024,
) -> Kept:
    """What a forward pass keeps.

    `width` is 4 or 2 bytes for an activation. Dropout is on if the config has a rate. Logits are made for
    `chunk_tokens` targets at a time. With activation checkpointing a layer keeps its input.

    >>> from mixtura.models.t5.config import SIZES
    >>> kept = kept_bytes(SIZES["base"], Microbatch(8, 512, 114), width=2)  # GB in bf16 on a GPU
    >>> round(kept.activations / 1e9, 1), round(kept.bias / 1e9, 1)
    (1.7, 0.1)
    """
    counting = _Counting(config, width, attention, on_gpu)
    stacks = _stacks(counting, batch)
    layer_input = width * config.d_model
    # The head reads the last stack's output, the decoder's layers the encoder's.
    outputs = [layer_input if activation_checkpointing else counting.read(config.d_model)] * (len(stacks) - 1)
    outputs += [counting.read(config.d_model)]
    ends = sum(stack.length * (counting.norm() + output) for stack, output in zip(stacks, outputs, strict=True))
    largest = max(stack.layer for stack in stacks)
    if activation_checkpointing:
        kept, again = sum(stack.layers * stack.length * layer_input for stack in stacks), largest
    else:
        kept, again = sum(stack.layers * stack.layer for stack in stacks), 0
    backward = max(3 * width * config.d_ff * stack.length + 2 * stack.pairs for stack in stacks)
    # A kernel that adds the bias itself takes one table for all rows.
    tables = 1 if attention == "flex" else batch.rows
    targets = batch.rows * batch.decoder_length if batch.targets is None else batch.targets
    # The head's gradient is a sum, to which each chunk adds its own.
    of_head = 0 if config.adapter_size is not None else 2 * _FULL * config.vocab_size * config.d_model
    # A GPU multiplies the gradient of logits in the width of activations.
    of_logit = _FULL + (width if on_gpu and width < _FULL else 0)
    return Kept(
        activations=batch.rows * (kept + ends),
        bias=tables * sum(stack.pairs for stack in stacks),
        head=of_logit * min(chunk_tokens, targets) * config.vocab_size + of_head + width * targets * config.d_model,
        working=batch.rows * (again + backward),
    )
