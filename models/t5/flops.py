"""How much a training step computes: the floating point operations of its matrix products, a multiplication and an
addition each.

Everything else (norms, softmax, dropout, the optimizer) is a few per cent and is left out, as is usual. Products with
positions that are padding or masked are counted: a dense kernel computes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixtura.models.t5.config import T5Config


@dataclass(frozen=True)
class Flops:
    """The forward pass of one step, part by part."""

    encoder: int = 0
    """Projections, feed-forward and adapters of the encoder's layers."""

    decoder: int = 0
    """The same of the decoder's, with the keys and values of its cross-attention, which are made at the encoder's
    positions."""

    attention: int = 0
    """Scores and weighted sums of all attentions."""

    head: int = 0
    """Logits, at the positions that have a target."""

    @property
    def forward(self) -> int:
        """All of the forward pass."""
        return self.encoder + self.decoder + self.attention + self.head

    @property
    def step(self) -> int:
        """Model FLOPs of a step: the backward pass has two products for each one of the forward pass."""
        return 3 * self.forward

    def hardware(self, *, activation_checkpointing: bool) -> int:
        """What is computed in a step: with activation checkpointing every layer's forward pass twice."""
        again = self.forward - self.head if activation_checkpointing else 0
        return self.step + again


def flops_per_step(
    config: T5Config, rows: int, encoder_length: int, decoder_length: int, target_positions: int | None = None
) -> Flops:
    """The forward pass over `rows` rows; a single stack has all its positions in `decoder_length`.

    Logits are made at `target_positions` of all rows together, at every decoder position if not given.

    >>> from mixtura.models.t5.config import SIZES
    >>> round(flops_per_step(SIZES["v1_1-base"], 1, 512, 114).step / 1e9)  # GFLOP for an example
    426
    """
    d, inner = config.d_model, config.inner
    ends = 2 * (3 if config.feed_forward == "gated-gelu" else 2) * d * config.d_ff
    if config.adapter_size is not None:
        ends += 4 * d * config.adapter_size
    project = 2 * d * inner  # one of q, k, v, o at one position
    scores = 4 * inner  # of one query with one key, and its share of the sum
    head = 2 * d * config.vocab_size * (rows * decoder_length if target_positions is None else target_positions)
    if config.architecture in ("prefix_lm", "lm"):
        layers, positions = config.num_layers, rows * decoder_length
        return Flops(
            decoder=layers * positions * (4 * project + ends),
            attention=layers * positions * decoder_length * scores,
            head=head,
        )
    sources, targets = rows * encoder_length, rows * decoder_length
    per_decoder_layer = targets * (6 * project + ends) + sources * 2 * project
    pairs = config.num_layers * sources * encoder_length
    pairs += config.num_decoder_layers * targets * (decoder_length + encoder_length)
    return Flops(
        encoder=config.num_layers * sources * (4 * project + ends),
        decoder=config.num_decoder_layers * per_decoder_layer,
        attention=pairs * scores,
        head=head,
    )
