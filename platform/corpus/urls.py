"""Addresses of pages: which are the same one, and on which side of the split a page is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from mixtura.platform.errors import DataError

_SCHEME = re.compile(r"https?://(www\.)?")
_CAMPAIGN = re.compile(r"\?(utm_|ref|feed).*")
_HOST = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]*://)?(?:[^/@]*@)?([^/:?#]+)")
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


class Domains:
    """Hosts whose pages stay: registered domains, each with any subdomain or with those that are listed."""

    def __init__(self, allowed: Mapping[str, Collection[str] | None]) -> None:
        self._allowed = allowed

    @classmethod
    def read(cls, path: Path) -> Domains:
        """From a file with a domain in each line, or JSON with the subdomains of each domain (null: any), as the list
        of Grover's news domains is (Zellers et al. 2019)."""
        text = _text_of(path, "domains")
        if not text.lstrip().startswith("{"):
            return cls(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise DataError(f"the list of domains at {path} begins as JSON, and is none: {error}") from error
        return cls({domain: set(below) if isinstance(below, list) else None for domain, below in listed.items()})

    def has(self, url: str) -> bool:
        """Whether a page of this address stays.

        >>> domains = Domains({"example.com": None, "news.org": {"world"}})
        >>> [domains.has(f"https://{host}/a") for host in ("www.example.com:80", "world.news.org", "news.org", "x.org")]
        [True, True, False, False]
        """
        match = _HOST.match(url)
        labels = match[1].lower().rstrip(".").split(".") if match else []
        for begin in range(len(labels)):
            domain = ".".join(labels[begin:])
            if domain in self._allowed:
                below = self._allowed[domain]
                return below is None or ".".join(labels[:begin]) in below
        return False


class AddressList:
    """Addresses whose pages stay, as sorted hashes: a list of all of OpenWebText's takes 200 MB."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._hashes = np.unique(np.fromiter(map(_short_hash, urls), np.uint64))

    @classmethod
    def read(cls, path: Path) -> AddressList:
        """From a file with an address in each line."""
        if not path.is_file():
            raise DataError(f"there is no list of addresses at {path}")
        with open(path, encoding="utf-8", errors="replace") as file:
            return cls(filter(None, map(str.strip, file)))

    def has(self, url: str) -> bool:
        """Whether the list has this address, however its copies differ.

        >>> AddressList(["http://example.com/a/"]).has("https://www.example.com/a?utm_source=news")
        True
        """
        hashed = np.uint64(_short_hash(url))
        place = int(np.searchsorted(self._hashes, hashed))
        return place < len(self._hashes) and bool(self._hashes[place] == hashed)


def _short_hash(url: str) -> int:
    return url_hash(normalized(url)) >> 64


def _text_of(path: Path, what: str) -> str:
    if not path.is_file():
        raise DataError(f"there is no list of {what} at {path}")
    return path.read_text(encoding="utf-8")
