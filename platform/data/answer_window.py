"""Inputs that are too long for the model, cut so that the answer is still in them (TriviaQA's long web pages).

    inputs   question : Which city ? context : ... the mayor of Paris said ...      length 6
    targets  Paris
    window                                        mayor of Paris said ...            or any other with Paris in it

The released code does this with tokens, after tokenizing and before trimming. Only inputs that are too long are looked
at; one without its answer is left out. The question goes with the cut, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import integers


def answer_window(inputs: Sequence[int], targets: Sequence[int], length: int, key: int) -> Sequence[int] | None:
    """At most `length` tokens of the inputs with the first occurrence of the targets in them; None if there is none.

    Every place where such a window may begin is equally likely; `key` decides. The released code gives the inputs'
    length for `length`, so that EOS then takes the place of the window's last token, which may be the answer's.

    >>> answer_window([3, 5, 7, 9, 11, 13], [7, 9], length=4, key=0)
    [7, 9, 11, 13]
    >>> answer_window([3, 5, 7, 9, 11, 13], [4], length=4, key=0) is None
    True
    """
    if length < 1:
        raise ConfigError(f"length is {length}: a window has at least one token")
    if len(inputs) <= length:
        return inputs if len(inputs) else None
    place = _first_place(np.asarray(inputs), np.asarray(targets))
    if place is None or len(targets) > length:
        return None
    first = max(0, place - (length - len(targets)))
    last = min(place, len(inputs) - length)
    start = first + int(integers(key, 0, last + 1 - first))
    return inputs[start : start + length]


def _first_place(tokens: npt.NDArray[np.integer], searched: npt.NDArray[np.integer]) -> int | None:
    if not len(searched) or len(searched) > len(tokens):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(searched))
    places = np.flatnonzero((windows == searched).all(axis=1))
    return int(places[0]) if len(places) else None
