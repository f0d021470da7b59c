"""How cleaning is timed, the same for every side of `benchmarks/corpus.py`.

A side is a process of its own in an environment of its own, so nothing but the standard library is used here. It gives
functions from a page's text to what becomes of it (None: the page is left out), and prints the raw MB/s of the one
asked for as JSON; or, where an output is named, writes what came out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Clean = Callable[[str], Any]


def run(sides: Mapping[str, Clean]) -> None:
    """Time the functions named in the command line over the pages of a file: FILE SECONDS NAME [OUTPUT]."""
    path, seconds, name = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    with open(path, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    clean = sides[name]
    if len(sys.argv) > 4:
        with open(sys.argv[4], "w", encoding="utf-8") as output:
            output.writelines(json.dumps(clean(text)) + "\n" for text in texts)
        return
    for text in texts[:50]:
        clean(text)
    size = sum(len(text.encode()) for text in texts)
    kept = passes = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:  # whole passes: all sides are timed on the same pages
        for text in texts:
            kept += clean(text) is not None
        passes += 1
    done = passes * len(texts)
    print(json.dumps({"MB/s": passes * size / 1e6 / elapsed, "pages/s": done / elapsed, "kept": kept / done}))
