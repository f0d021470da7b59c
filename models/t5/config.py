"""What makes one T5 differ from another: its shape, and the few choices between T5 1.0 and 1.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

FeedForwardKind = Literal["relu", "gated-gelu"]

Architecture = Literal["encoder_decoder", "shared", "prefix_lm", "lm"]
DropoutOverLength = Literal["shared", "independent"]

FEED_FORWARD_KINDS: tuple[FeedForwardKind, ...] = ("relu", "gated-gelu")

_POSITIVE = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers")


@dataclass(frozen=True)
class T5Config:
    """The architecture of an encoder-decoder T5 (Raffel et al. 2020, section 2.1; 1.1 as in Shazeer 2020).

    T5 1.0 is `feed_forward="relu"` with tied embeddings, T5 1.1 is `"gated-gelu"` with a separate head.

    >>> T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2, num_decoder_layers=2).inner
    64
    """

    vocab_size: int
    """Rows of the embedding: every usable id and the padding up to a round number (32,128 for T5's vocabulary)."""

    d_model: int
    """Channels between the layers."""

    d_kv: int
    """Channels of one attention head; heads x d_kv need not equal d_model."""

    d_ff: int
    """Hidden channels of the feed-forward sublayer."""

    num_heads: int
    """Attention heads, of every attention in both stacks."""

    num_layers: int
    """Layers of the encoder."""

    num_decoder_layers: int
    """Layers of the decoder."""

    relative_attention_num_buckets: int = 32
    """Buckets of the relative position bias; the encoder spends half on either side."""

    relative_attention_max_distance: int = 128
    """Distance from which on all positions share the last bucket."""

    dropout_rate: float = 0.1
    """Share dropped at every site, when the caller hands in dropout keys."""

    feed_forward: FeedForwardKind = "relu"
    """`relu` (1.0) or `gated-gelu` (1.1, tanh approximation)."""

    tie_embeddings: bool = True
    """Whether the embedding is also the head (1.0), with logits scaled by d_model^-0.5."""

    layer_norm_epsilon: float = 1e-6
    """Added to the mean square in every norm."""

    architecture: Architecture = "encoder_decoder"
    """The paper's section 3.2: two stacks, two stacks with the same weights, or one stack."""

    adapter_size: int | None = None
    """Inner channels of an adapter after every feed-forward sublayer; none if not given."""

    dropout_over_length: DropoutOverLength = "shared"
    """One dropout mask for all positions of a row, or one for each."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"T5Config.{name} is {getattr(self, name)}; give a number of at least 1")
        for name, known in (
            ("feed_forward", FEED_FORWARD_KINDS),
            ("architecture", get_args(Architecture)),
            ("dropout_over_length", get_args(DropoutOverLength)),
        ):
            if getattr(self, name) not in known:
                kinds = " or ".join(f"'{kind}'" for kind in known)
                raise ValueError(f"T5Config.{name} is '{getattr(self, name)}'; choose {kinds}")
        if self.adapter_size is not None and self.adapter_size < 1:
            raise ValueError(f"T5Config.adapter_size is {self.adapter_size}; give a number of at least 1, or None")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"T5Config.dropout_rate is {self.dropout_rate}; give a share of at least 0, below 1")
        if not self.layer_norm_epsilon > 0.0:
            raise ValueError(f"T5Config.layer_norm_epsilon is {self.layer_norm_epsilon}; give a number above 0")
        self._check_buckets()

    def _check_buckets(self) -> None:
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or buckets % 2:
            raise ValueError(
                f"T5Config.relative_attention_num_buckets is {buckets}; give an even number of at least 4, "
                "since the encoder splits the buckets between left and right"
            )
        if distance <= buckets // 2:
            raise ValueError(
                f"T5Config.relative_attention_max_distance is {distance}, but {buckets} buckets hold distances up to "
                f"{buckets // 2} one by one; give a distance above {buckets // 2} or fewer buckets"
            )

    @property
    def inner(self) -> int:
        """Channels of all heads together."""
        return self.num_heads * self.d_kv


def _v1_0(d_model: int, d_ff: int, d_kv: int, num_heads: int, layers: int) -> T5Config:
    return T5Config(32128, d_model, d_kv, d_ff, num_heads, num_layers=layers, num_decoder_layers=layers)


def _v1_1(d_model: int, d_ff: int, num_heads: int, layers: int) -> T5Config:
    return T5Config(
        32128,
        d_model,
        64,
        d_ff,
        num_heads,
        num_layers=layers,
        num_decoder_layers=layers,
        feed_forward="gated-gelu",
        tie_embeddings=False,
    )


SIZES: Mapping[str, T5Config] = MappingProxyType(
    {
        # d_model, d_ff, d_kv, heads, layers of each stack
        "small": _v1_0(512, 2048, 64, 8, 6),
        "base": _v1_0(768, 3072, 64, 12, 12),
        "large": _v1_0(1024, 4096, 64, 16, 24),
        "3B": _v1_0(1024, 16384, 128, 32, 24),
        "11B": _v1_0(1024, 65536, 128, 128, 24),
        # d_model, d_ff, heads, layers of each stack
        "v1_1-small": _v1_1(512, 1024, 6, 8),
        "v1_1-base": _v1_1(768, 2048, 12, 12),
        "v1_1-large": _v1_1(1024, 2816, 16, 24),
        "v1_1-xl": _v1_1(2048, 5120, 32, 24),
        "v1_1-xxl": _v1_1(4096, 10240, 64, 24),
    }
)
"""The published sizes by name, with T5's vocabulary; `dataclasses.replace` makes others of them."""
