"""T5 in the shapes of the paper's section 3.2, of one set of layers: two stacks, two with equal weights, or one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixtura.models.t5.attention import ATTENTION_KINDS, AttentionKind, Visible, mask
from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout
from mixtura.models.t5.layers import Embedding, Head, Linear, decoding_logits, logits
from mixtura.models.t5.stack import Computing, DecoderCache, Stack

PAD_ID = 0
"""Padding in all stacks, and the decoder's first input."""


class TextToText(nn.Module, ABC):
    """What all shapes have in common: embedding, decoder and head. Parameters are NaN until they are filled.

    Tokens and segment ids are integers [batch, length]. Segments count from 1; 0 is padding. A position sees only
    positions of its own segment.

    `dropout_keys` (int64 [batch], one key per row) switch dropout on; see `mixtura.models.t5.dropout`.

    The forward pass gives logits of the next token at every decoder position, float32 [batch, length, vocab_size]; or
    what `head` makes of the hidden states [batch, length, d_model], scaled by d_model^-0.5 where embeddings are tied,
    and the weight [vocab_size, d_model]: a loss, without ever having all logits.
    """

    features: tuple[str, ...]
    """SeqIO's names of what the forward pass takes."""

    def __init__(self, config: T5Config, computing: Computing) -> None:
        super().__init__()
        self.config, self.computing = config, computing
        self.embedding = Embedding(config.vocab_size, config.d_model)

    def _complete(self) -> None:
        """Add the head, and freeze what adapters leave as it is."""
        config = self.config
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)
        if config.adapter_size is not None:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".adapter." in name or name.endswith(".scale"))

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.embedding.weight.device

    @property
    def unfreezing_order(self) -> tuple[frozenset[str], ...]:
        """Parameters in the order of gradual unfreezing (section 3.5.1).

        First those that are trained throughout (embedding, head, last norms, position biases), then the top layer of
        every stack, then the one below it, ...
        """
        names = {name for name, _ in self.named_parameters()}
        stacks = {name: len(stack.layers) for name, stack in self.named_children() if isinstance(stack, Stack)}
        groups = []
        for below_top in range(max(stacks.values())):
            prefixes = tuple(f"{stack}.layers.{layers - 1 - below_top}." for stack, layers in stacks.items())
            groups.append(frozenset(name for name in names if name.startswith(prefixes)))
        return (frozenset(names.difference(*groups)), *groups)

    def unembed(self, hidden: Tensor, head: Head = logits) -> Any:
        """What a head makes of hidden states [..., d_model]: logits, float32 [..., vocab_size]."""
        if self.head is not None:
            return self.head(hidden, head)
        return self.embedding(hidden * self.config.d_model**-0.5, head)

    def decode_next(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits after one more token per row: tokens [batch] -> float32 [batch, vocab_size]; the cache grows by it."""
        found: Tensor = self.unembed(self._read(tokens[:, None], cache), decoding_logits)[:, 0]
        return found

    def read_next(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits after each of several more tokens: tokens [batch, count] -> float32 [batch, count, vocab_size]; the
        cache grows by them."""
        found: Tensor = self.unembed(self._read(tokens, cache))
        return found

    def _read(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        last = cache.length + tokens.shape[1] - 1
        if last >= cache.max_length:
            raise ValueError(
                f"position {last} was asked of a decoder cache with room for {cache.max_length}; "
                "start it with a larger max_length"
            )
        return self._decoder().go_on(self.embedding(tokens), cache)

    @abstractmethod
    def start_decoding(self, inputs: Tensor, segment_ids: Tensor, max_length: int) -> tuple[DecoderCache, Tensor]:
        """A cache with what is known of inputs [batch, source length], and the logits [batch, vocab_size] of the first
        of up to `max_length` tokens that answer them."""

    @abstractmethod
    def _decoder(self) -> Stack:
        """The stack that says what comes next."""

    def _dropout(self, keys: Tensor | None, sites: int, *lengths: int) -> Dropout | None:
        """The masks of a forward pass over rows of these lengths."""
        config = self.config
        if keys is None or config.dropout_rate == 0.0:
            return None
        longest, heads = max(lengths), config.num_heads
        width = max(config.d_model, config.d_ff, config.adapter_size or 0)
        if config.dropout_over_length == "shared":
            indices = max(width, longest * heads)
        else:
            indices = longest * max(width, longest * heads)
        return Dropout.of_rows(
            keys,
            config.dropout_rate,
            sites=sites,
            indices=indices,
            over_length=config.dropout_over_length,
        )


class T5(TextToText):
    """Encoder and decoder; in the `shared` architecture the encoder is the decoder without its cross-attention.

    Without segment ids a row is one segment: the encoder's is where its tokens are not 0, and the decoder sees
    everything before it.
    """

    features = ("encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens", "decoder_segment_ids")

    def __init__(self, config: T5Config, *, computing: Computing | None = None) -> None:
        super().__init__(config, computing or Computing())
        self.shared = config.architecture == "shared"
        if not self.shared:
            self.encoder = Stack(config, config.num_layers, self.computing)
        self.decoder = Stack(config, config.num_decoder_layers, self.computing, cross=True)
        self._complete()

    def forward(
        self,
        encoder_input_tokens: Tensor,
        decoder_input_tokens: Tensor,
        *,
        encoder_segment_ids: Tensor | None = None,
        decoder_segment_ids: Tensor | None = None,
        dropout_keys: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """Logits of the next token at every decoder position, float32 [batch, target length, vocab_size]."""
        if (encoder_segment_ids is None) != (decoder_segment_ids is None):
            given, missing = ("encoder", "decoder") if decoder_segment_ids is None else ("decoder", "encoder")
            raise ValueError(f"{given}_segment_ids came without {missing}_segment_ids; give both or neither")
        segments = _segments(encoder_input_tokens, encoder_segment_ids)
        if decoder_segment_ids is None:
            decoder_segment_ids = torch.ones_like(decoder_input_tokens)
        sites = self._encoder().sites, self.decoder.sites
        dropout = self._dropout(dropout_keys, sum(sites), encoder_input_tokens.shape[1], decoder_input_tokens.shape[1])
        encoded = self._encode(encoder_input_tokens, segments, None if dropout is None else dropout.part(0, sites[0]))
        hidden = self.decoder(
            self.embedding(decoder_input_tokens),
            Visible(decoder_segment_ids, decoder_segment_ids, causal=True),
            None if dropout is None else dropout.part(*sites),
            bidirectional=False,
            encoded=encoded,
            cross_visible=Visible(decoder_segment_ids, segments),
        )
        return self.unembed(hidden, head)

    def encode(self, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """What the decoder looks at, [batch, length, d_model], without dropout."""
        return self._encode(tokens, _segments(tokens, segment_ids), None)

    def start_decoding(self, inputs: Tensor, segment_ids: Tensor, max_length: int) -> tuple[DecoderCache, Tensor]:
        """A cache for decoding up to `max_length` tokens one by one, and the logits [batch, vocab_size] of the first.

        inputs [batch, source length], one example per row. Rows of similar length are encoded together, so that a batch
        that is padded to its longest costs little more than its tokens.
        """
        parts = []
        for rows, length in _of_similar_length(segment_ids):
            encoded = self.encode(inputs[rows, :length], segment_ids[rows, :length])
            parts.append((rows, encoded))
        cache = self.decoder.look_at(parts, segment_ids != PAD_ID, max_length, dtype=parts[0][1].dtype)
        return cache, self.decode_next(torch.full_like(inputs[:, 0], PAD_ID), cache)

    def _encode(self, tokens: Tensor, segments: Tensor, dropout: Dropout | None) -> Tensor:
        encoded: Tensor = self._encoder()(
            self.embedding(tokens), Visible(segments, segments), dropout, bidirectional=True
        )
        return encoded

    def _encoder(self) -> Stack:
        return self.decoder if self.shared else self.encoder

    def _decoder(self) -> Stack:
        return self.decoder


class DecoderOnlyT5(TextToText):
    """One stack, which reads inputs and targets in one row: a prefix LM, or a language model (section 3.2.2).

    A language model's position sees what is before it. In a prefix LM positions of the inputs see each other from both
    sides, too: `decoder_causal_attention` is 1 there (SeqIO's name), and position biases have buckets for both sides.
    """

    def __init__(self, config: T5Config, *, computing: Computing | None = None) -> None:
        super().__init__(config, computing or Computing())
        self.prefix = config.architecture == "prefix_lm"
        self.features = ("decoder_input_tokens", "decoder_segment_ids")
        if self.prefix:
            self.features += ("decoder_causal_attention",)
        self.decoder = Stack(config, config.num_layers, self.computing)
        self._complete()

    def forward(
        self,
        decoder_input_tokens: Tensor,
        decoder_segment_ids: Tensor,
        *,
        decoder_causal_attention: Tensor | None = None,
        dropout_keys: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """Logits of the next token at every position, float32 [batch, length, vocab_size]."""
        if self.prefix != (decoder_causal_attention is not None):
            raise ValueError(
                f"a model of architecture '{self.config.architecture}' was called "
                f"{'without' if self.prefix else 'with'} decoder_causal_attention, which is of prefix_lm alone"
            )
        length = decoder_input_tokens.shape[1]
        visible = self._visible(decoder_segment_ids, decoder_causal_attention)
        dropout = self._dropout(dropout_keys, self.decoder.sites, length)
        x = self.embedding(decoder_input_tokens)
        return self.unembed(self.decoder(x, visible, dropout, bidirectional=self.prefix), head)

    def start_decoding(self, inputs: Tensor, segment_ids: Tensor, max_length: int) -> tuple[DecoderCache, Tensor]:
        """A cache with what the rows begin with, and the logits [batch, vocab_size] of what comes next.

        inputs [batch, source length], one example per row. There is room for `max_length` tokens more.
        """
        tokens, segment_ids = _beginnings(inputs, segment_ids)
        length = tokens.shape[1]
        x = self.embedding(tokens)
        cache = self.decoder.start(x, length + max_length, bidirectional=self.prefix)
        seen = functional.pad(segment_ids != PAD_ID, (0, max_length), value=True)
        cache.own_mask = mask(seen[:, None, None], x.dtype)
        visible = self._visible(segment_ids, segment_ids if self.prefix else None)
        bias = self.decoder.relative_bias(length, bidirectional=self.prefix) + mask(visible.dense(), x.dtype)
        hidden = self.decoder.go_on(x, cache, bias)
        return cache, self.unembed(hidden[:, -1:], decoding_logits)[:, 0]

    def _visible(self, segments: Tensor, both_ways: Tensor | None) -> Visible:
        return Visible(segments, segments, causal=True, prefix=None if both_ways is None else both_ways.bool())

    def _decoder(self) -> Stack:
        return self.decoder


def create_model(
    config: T5Config,
    *,
    attention: AttentionKind = "sdpa",
    compile: bool = False,  # noqa: A002  the recipe's word
    activation_checkpointing: bool = False,
) -> T5 | DecoderOnlyT5:
    """The model of an architecture, whose parameters are NaN until `initialize` or a loaded state fills them.

    `attention` chooses between torch's fused kernels (`sdpa`), the same mathematics written out (`eager`) and
    FlexAttention (`flex`). `compile` compiles each layer; with `activation_checkpointing` only a layer's input is kept
    for the backward pass. None of these changes what is computed.
    """
    if attention not in ATTENTION_KINDS:
        raise ValueError(f"attention is '{attention}'; choose one of {', '.join(map(repr, ATTENTION_KINDS))}")
    if attention == "flex" and config.dropout_over_length == "independent":
        raise ValueError(
            "attention is 'flex', which has no dropout_over_length 'independent'; choose 'sdpa', or 'shared' dropout"
        )
    computing = Computing(attention, compile, activation_checkpointing)
    if config.architecture in ("encoder_decoder", "shared"):
        return T5(config, computing=computing)
    return DecoderOnlyT5(config, computing=computing)


def _segments(tokens: Tensor, segment_ids: Tensor | None) -> Tensor:
    return (tokens != PAD_ID).to(torch.int32) if segment_ids is None else segment_ids


_ENCODED_AT_LEAST = 1024
"""Positions for which rows of other lengths are encoded together, since calls would cost more than padding."""


def _of_similar_length(segments: Tensor) -> list[tuple[Tensor, int]]:
    """Rows [rows] in groups, the longest first, and the length that each group needs.

    >>> rows = torch.tensor([[1] * 1000, [1] * 400 + [0] * 600, [1] * 980 + [0] * 20])
    >>> [(group.tolist(), length) for group, length in _of_similar_length(rows)]
    [([0, 2], 1000), ([1], 400)]
    """
    positions = torch.arange(1, segments.shape[1] + 1, device=segments.device)
    lengths = ((segments != PAD_ID) * positions).amax(1).clamp(min=1)
    ordered, rows = lengths.sort(descending=True, stable=True)
    groups, first, all_lengths = [], 0, ordered.tolist()
    for place, length in enumerate(all_lengths):
        longest = all_lengths[first]
        if length < 0.95 * longest and (place - first) * longest >= _ENCODED_AT_LEAST:
            groups.append((rows[first:place], longest))
            first = place
    return [*groups, (rows[first:], all_lengths[first])]


def _beginnings(inputs: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a single stack as far as they are known, with their segment ids, so padded that they end together.

    >>> _beginnings(torch.tensor([[7, 8, 1], [9, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))[0].tolist()
    [[0, 7, 8, 1], [0, 0, 9, 1]]
    """
    columns, padding = torch.arange(inputs.shape[1] + 1, device=inputs.device), (segments == 0).sum(1, keepdim=True)
    # Everything moves to the right by as much as there is padding, and by the pad that a row begins with.
    shifted = functional.pad(inputs, (1, 0), value=PAD_ID).gather(1, (columns - padding).clamp(min=0))
    return shifted, (columns >= padding).to(segments.dtype)
