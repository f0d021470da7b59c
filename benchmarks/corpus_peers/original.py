"""The original's functions (tensorflow-datasets' c4_utils): run by `benchmarks/corpus.py` in their environment.

The file is loaded alone, since its package would load TensorFlow, of which cleaning uses one conversion of text. Punkt
gets the same abbreviations as ours: its trained parameters are a download.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import langdetect
from cleaning import run
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer


def load() -> Any:
    """The module, with stand-ins for what it imports and cleaning does not use."""
    counter = types.SimpleNamespace(counter=lambda *_: types.SimpleNamespace(inc=lambda *_: None))
    beam = types.SimpleNamespace(metrics=types.SimpleNamespace(Metrics=counter))
    tensorflow = types.SimpleNamespace(
        compat=types.SimpleNamespace(as_text=str),
        io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=lambda content, _: io.BytesIO(content))),
    )
    lazy = types.SimpleNamespace(apache_beam=beam, langdetect=langdetect)
    lazy_imports = types.ModuleType("lazy_imports_utils")
    lazy_imports.tensorflow = tensorflow  # type: ignore[attr-defined]
    public = types.ModuleType("public_api")
    public.core = types.SimpleNamespace(lazy_imports=lazy)  # type: ignore[attr-defined]
    root = types.ModuleType("tensorflow_datasets")
    root.public_api = public  # type: ignore[attr-defined]
    absl = types.ModuleType("absl")
    absl.logging = types.SimpleNamespace(info=lambda *_: None)  # type: ignore[attr-defined]
    sys.modules |= {
        "absl": absl,
        "tensorflow_datasets": root,
        "tensorflow_datasets.core": types.ModuleType("core"),
        "tensorflow_datasets.core.utils": types.ModuleType("utils"),
        "tensorflow_datasets.core.utils.lazy_imports_utils": lazy_imports,
        "tensorflow_datasets.public_api": public,
    }
    (path,) = (
        Path(folder) / "tensorflow_datasets/text/c4_utils.py"
        for folder in sys.path
        if (Path(folder) / "tensorflow_datasets/text/c4_utils.py").is_file()
    )
    spec = importlib.util.spec_from_file_location("c4_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["c4_utils"] = module
    spec.loader.exec_module(module)
    parameters = PunktParameters()
    parameters.abbrev_types = set(os.environ["ABBREVIATIONS"].split())
    module._SENTENCE_TOKENIZER = PunktSentenceTokenizer(parameters)
    return module


C4 = load()
CLEAN = C4.get_clean_page_fn()
WORDS = C4.get_badwords_filter_fn(
    {"en": [word for word in Path(os.environ["BAD_WORDS"]).read_text().split("\n") if word]}
)


def page_of(text: str) -> Any:
    """A page that is read already."""
    return C4.PageFeatures(url="http://example.com/", normalized_url="example.com", text=text, timestamp="x")


def cleaned(page: Any, count: Any = lambda *_: None) -> Any:
    """The original's page, if it stays."""
    if C4.is_valid_length(page):
        return next(iter(CLEAN(page, counter_inc_fn=count)), None)
    count("filtered:too_long")
    return None


def rules(text: str) -> str | None:
    """The rules alone."""
    page = cleaned(page_of(text))
    return None if page is None else page.text


def chain(text: str) -> str | None:
    """Rules, language, bad words."""
    page = cleaned(page_of(text))
    page = None if page is None else next(iter(C4.detect_english(page)), None)
    return page.text if page is not None and WORDS(page) else None


def parity(text: str) -> dict[str, Any]:
    """What came out, with the original's counters, of a crawl's file with this page."""
    header = "WARC/1.0\r\nWARC-Target-URI: http://example.com/\r\nWARC-Date: x\r\n\r\n"
    file = gzip.compress((header + text).encode(), compresslevel=0)
    counts: Counter[str] = Counter()

    def count(name: str, amount: int = 1) -> None:
        counts[name] += amount

    page = next(C4.split_wet_file(file, counter_inc_fn=lambda *_: None), None)
    if page is None:
        count("filtered:too_few_sentences")  # so ours says of a page without a line
    else:
        page = cleaned(page, count)
    return {"text": None if page is None else page.text, "counts": dict(counts)}


run({"rules": rules, "chain": chain, "parity": parity})
