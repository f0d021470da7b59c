"""Where a recipe's token caches lie, and where each node keeps its copies of them."""

from __future__ import annotations

from mixtura.platform.config import Config, parse_bytes
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.filesystems import absolute


def copies_of(config: Config) -> Copies:
    """Where each node keeps its copies of a bucket's caches, and how many bytes of them."""
    given, size = config.data.copies, parse_bytes(config.data.copies_size)
    return Copies(size_bytes=size) if given is None else Copies(absolute(given), size)
