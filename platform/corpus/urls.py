"""Addresses of pages: which are the same one, and on which side of the split a page is."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

_SCHEME = re.compile(r"https?://(www\.)?")
_CAMPAIGN = re.compile(r"\?(utm_|ref|feed).*")
_ONE_IN = 1000


def normalized(url: str) -> str:
    """An address without what differs between copies of a page, as C4's code has it: case counts, and a parameter of a
    campaign is cut off only where it is the first.

    >>> normalized("https://www.example.com/a/?utm_source=news"), normalized("http://example.com/a?x=1&utm_source=news")
    ('example.com/a', 'example.com/a?x=1&utm_source=news')
    """
    return _CAMPAIGN.sub("", _SCHEME.sub("", url)).rstrip("/")


def url_hash(url: str) -> int:
    """The MD5 of a normalized address as a number: C4's source of chance."""
    return int(hashlib.md5(url.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest(), 16)


def split_of(url: str) -> Literal["train", "validation"]:
    """The split of a page by its normalized address: one in a thousand is for validation.

    >>> split_of(normalized("https://www.example.com/page0")), split_of(normalized("https://www.example.com/page369"))
    ('train', 'validation')
    """
    return "train" if url_hash(url) % _ONE_IN else "validation"
