"""Text of a data set that the released code reads as a regular expression, where it meant the text itself.

The original's expressions are RE2's, which know only ASCII classes and refuse some forms that Python's accept. What
RE2 refuses makes the original stop, so such a row is rejected.
"""

from __future__ import annotations

import functools
import re

from mixtura.platform.data.task import Rejected

# Forms of Python's that RE2 has not: possessive quantifiers, looking around, conditions, references to groups.
_NOT_IN_RE2 = re.compile(r"(?<!\\)(?:\\\\)*(?:[*+?}]\+|\(\?(?:<?[=!]|>|\(|P=)|\\[1-9])")

INVALID = "text is no regular expression"


@functools.lru_cache(maxsize=4096)
def read_as_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern that has text of a row in it, compiled as the released code does; Rejected where it cannot be.

    >>> read_as_pattern("a.c").search("abc") is not None
    True
    >>> read_as_pattern("C++")
    Traceback (most recent call last):
    mixtura.platform.data.task.Rejected: text is no regular expression
    """
    if _NOT_IN_RE2.search(pattern):
        raise Rejected(INVALID)
    try:
        return re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, RecursionError):
        raise Rejected(INVALID) from None
