"""Dropout whose masks are a function of the row, not of the moment.

A mask bit is a pure integer function of three numbers: the key of the row (given by the caller, one per row), the
number of the site (fixed when the model is built) and the index in the row. It is the same on every device, in every
dtype, for any split of the batch into microbatches and for any padded length.

As in the original, masks are shared over the length axis. Where channels are dropped, the index is the channel. For
attention weights the mask is shared over the query positions, which is the same as dropping whole rows of the values
before the product: `sum_k (w_qk m_k) v_k = sum_k w_qk (m_k v_k)`. The index there is position x heads + head.

Masks that are `independent` over length, as most other code has them, have an index for every position: position x
width + channel; and in attention pair x heads + head, where pairs of a query and a key are numbered so that a longer
row does not change the numbers of a shorter one.

The function is SplitMix64 (Steele, Lea and Flood 2014), a word of 64 bits for a key and a counter: the row's key
and the site give the site's key, that and the index give the word, and an element is dropped where the word, read as a
signed number, is below `-2^63 + rate 2^64`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixtura.models.t5.config import DropoutOverLength


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
    return _mixed(_steps(counters) + keys)


def _steps(counters: Tensor) -> Tensor:
    return (counters + 1) * _GOLDEN


def _mixed(z: Tensor) -> Tensor:
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

    site_keys: Tensor
    """int64 [sites, batch], one key per row and site."""

    steps: Tensor
    """int64 [most indices of a site]: what is added to a site's key, made once for all sites. (A compiler that folds
    these products into constants does not wrap them.)"""

    rate: float

    over_length: DropoutOverLength = "shared"

    @classmethod
    def of_rows(
        cls, keys: Tensor, rate: float, *, sites: int, indices: int, over_length: DropoutOverLength = "shared"
    ) -> Dropout:
        """The masks of rows with these keys (int64 [batch]), at so many sites of at most `indices` elements each."""
        counters = torch.arange(max(sites, indices), device=keys.device)
        site_keys = words(keys, counters[:sites, None])
        return cls(site_keys, _steps(counters[:indices]), rate, over_length)

    def part(self, first: int, sites: int) -> Dropout:
        """The masks of so many sites, counted from `first`.

        A layer numbers its sites from 0, so that one compiled function serves all layers of a stack.
        """
        return replace(self, site_keys=self.site_keys[first : first + sites])

    def kept(self, site: int, count: int) -> Tensor:
        """bool [batch, count]: which of the first `count` elements of a site are kept in each row."""
        return self._kept(site, self.steps[:count])

    def channels(self, site: int, width: int, length: int, dtype: torch.dtype) -> Tensor:
        """[batch, 1 or length, width]: a mask for tensors of [batch, length, width]."""
        positions = 1 if self.over_length == "shared" else length
        return self._scaled(self.kept(site, positions * width), dtype).view(-1, positions, width)

    def value_rows(self, site: int, heads: int, length: int, dtype: torch.dtype) -> Tensor:
        """[batch, heads, length, 1]: a mask for the values of attention, [batch, heads, length, d_kv]."""
        kept = self.kept(site, length * heads).view(-1, length, heads)
        return self._scaled(kept.transpose(1, 2), dtype)[..., None]

    def pairs(self, site: int, heads: int, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
        """[batch, heads, queries, keys]: a mask for the weights of attention where it is independent over length."""
        index = _pair_numbers(queries, keys, self.steps.device).flatten()[:, None] * heads
        index = (index + torch.arange(heads, device=index.device)).flatten()
        kept = self._kept(site, self.steps[index]).view(-1, queries, keys, heads)
        return self._scaled(kept.permute(0, 3, 1, 2), dtype)

    def _kept(self, site: int, steps: Tensor) -> Tensor:
        threshold = _signed(round(self.rate * 2**64) ^ 2**63)
        return _mixed(steps + self.site_keys[site, :, None]) >= threshold

    def _scaled(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        return kept.to(dtype) * (1.0 / (1.0 - self.rate))


def _pair_numbers(queries: int, keys: int, device: torch.device) -> Tensor:
    """int64 [queries, keys]: a number for each pair, whatever the lengths (Szudzik 2006).

    >>> _pair_numbers(2, 3, torch.device("cpu")).tolist()
    [[0, 1, 4], [2, 3, 5]]
    """
    query, key = torch.arange(queries, device=device)[:, None], torch.arange(keys, device=device)[None]
    return torch.where(query < key, key * key + query, query * query + query + key)


def drop(x: Tensor, site: int, dropout: Dropout | None) -> Tensor:
    """x [batch, length, width] with channels dropped."""
    return x if dropout is None else x * dropout.channels(site, x.shape[-1], x.shape[1], x.dtype)


def add_dropped(residual: Tensor, x: Tensor, site: int, dropout: Dropout | None) -> Tensor:
    """residual + drop(x), both [batch, length, width], in one pass over memory."""
    if dropout is None:
        return residual + x
    return torch.addcmul(residual, x, dropout.channels(site, x.shape[-1], x.shape[1], x.dtype))
