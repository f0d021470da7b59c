"""Dropout whose masks are a function of the row, not of the moment.

A mask bit is a pure integer function of three numbers: the key of the row (given by the caller, one per row), the
number of the site (fixed when the model is built) and the index in the row. It is the same on every device, in every
dtype, for any split of the batch into microbatches and for any padded length.

As in the original, masks are shared over the length axis. Where channels are dropped, the index is the channel. For
attention weights the mask is shared over the query positions, which is the same as dropping whole rows of the values
before the product: `sum_k (w_qk m_k) v_k = sum_k w_qk (m_k v_k)`. The index there is position x heads + head.

The function is SplitMix64 (Steele, Lea and Flood 2014), a word of 64 bits for a key and a counter: the row's key
and the site give the site's key, that and the index give the word, and an element is dropped where the word, read as a
signed number, is below `-2^63 + rate 2^64`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The 64-bit word as torch's int64 holds it."""
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def words(keys: Tensor, counters: Tensor) -> Tensor:
    """Words of SplitMix64 as int64; `keys` and `counters` (int64) broadcast, and products wrap at 2^64.

    >>> hex(words(torch.tensor(0), torch.tensor(0)).item() % 2**64)
    '0xe220a8397b1dcdaf'
    """
    z = (counters + 1) * _GOLDEN + keys
    # int64 shifts copy the sign bit into the vacated places; the masks clear it.
    z ^= (z >> 30) & (2**34 - 1)
    z *= _FIRST
    z ^= (z >> 27) & (2**37 - 1)
    z *= _SECOND
    z ^= (z >> 31) & (2**33 - 1)
    return z


@dataclass(frozen=True)
class Dropout:
    """The masks of one forward pass: zero where dropped, `1 / (1 - rate)` where kept."""

    keys: Tensor
    """int64 [batch], one key per row."""

    rate: float

    def kept(self, site: int, count: int) -> Tensor:
        """bool [batch, count]: which of the first `count` elements of a site are kept in each row."""
        threshold = _signed(round(self.rate * 2**64) ^ 2**63)
        site_keys = words(self.keys, torch.full_like(self.keys, site))
        index = torch.arange(count, device=self.keys.device)
        return words(site_keys[:, None], index) >= threshold

    def channels(self, site: int, width: int, dtype: torch.dtype) -> Tensor:
        """[batch, 1, width]: a mask for tensors of [batch, length, width]."""
        return self._scaled(self.kept(site, width), dtype)[:, None, :]

    def value_rows(self, site: int, heads: int, length: int, dtype: torch.dtype) -> Tensor:
        """[batch, heads, length, 1]: a mask for the values of attention, [batch, heads, length, d_kv]."""
        kept = self.kept(site, length * heads).view(-1, length, heads)
        return self._scaled(kept.transpose(1, 2), dtype)[..., None]

    def _scaled(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        return kept.to(dtype) * (1.0 / (1.0 - self.rate))


def drop(x: Tensor, site: int, dropout: Dropout | None) -> Tensor:
    """x [batch, length, width] with channels dropped."""
    return x if dropout is None else x * dropout.channels(site, x.shape[-1], x.dtype)


def add_dropped(residual: Tensor, x: Tensor, site: int, dropout: Dropout | None) -> Tensor:
    """residual + drop(x), both [batch, length, width], in one pass over memory."""
    if dropout is None:
        return residual + x
    return torch.addcmul(residual, x, dropout.channels(site, x.shape[-1], x.dtype))
