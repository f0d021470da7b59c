"""Pages to make corpora of, and what came out."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from mixtura.platform.config import ExecutorSection
from mixtura.platform.corpus.duplicates import line_key, page_key
from mixtura.platform.corpus.inputs import input_files
from mixtura.platform.corpus.settings import corpus_settings
from mixtura.platform.filesystems import joined
from mixtura.platform.orchestration.corpus import Build, build_corpus, check_request
from mixtura.platform.orchestration.corpus_tasks import corpus_tasks
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.recipe_files import merged

Page = dict[str, str]

WORDS = ["harbour", "fisherman", "net", "pier", "storm", "evening", "light", "boat", "sail", "wind", "morning", "tide"]


def sentence(chance: random.Random) -> str:
    words = [chance.choice(WORDS) for _ in range(chance.randrange(6, 11))]
    return f"The {' '.join(words)} was there all of the time."


def some_pages() -> list[Page]:
    """Pages that share lines and addresses, in two languages, with a bad word here and there."""
    chance = random.Random(0)
    common = [sentence(chance) for _ in range(12)]
    german = ["Der Hafen lag am Morgen ganz still und niemand hat den Sturm erwartet."] * 9
    german = [line.replace("Morgen", f"Morgen des {day}. Tages") for day, line in enumerate(german)]
    made = []
    for number in range(260):
        lines = [sentence(chance) for _ in range(chance.randrange(0, 5))] + chance.sample(common, chance.randrange(4))
        lines += ["Home | News", f"Line {number} of the menu"] * (number % 3 == 0)
        lines += [f"{line} Das war Nummer {number}." for line in german] * (number % 11 == 0)
        lines += ["A frob was seen at the old pier today."] * (number % 17 == 0)
        lines += ["var x = { the code of the page };"] * (number % 23 == 0) + ["function() { x } is what it does."] * (
            number % 29 == 0
        )
        chance.shuffle(lines)
        url = f"https://{'www.' * (number % 2)}example.com/{number % 210}{'/' * (number % 5 == 0)}"
        date = f"2024-05-{1 + number % 28:02d}T10:00:{number % 60:02d}Z"
        made.append({"url": url, "timestamp": date, "text": "\n".join(lines) or "nothing"})
    return made


def write_pages(folder: Path, pages: Sequence[Page], files: int) -> Path:
    folder.mkdir()
    for number in range(files):
        rows = (json.dumps(page) + "\n" for page in pages[number::files])
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    return folder


def build(
    folder: Path | str,
    output: Path | str,
    words: Path,
    values: Mapping[str, Any] | None = None,
    preset: str = "c4",
    map_jobs: Any = None,
) -> dict[str, Any]:
    files = input_files([str(folder) if str(folder).endswith(".paths") else joined(folder, "*")])
    settings = corpus_settings(preset, merged({"bad_words": {"files": {"en": str(words)}}}, values or {}))
    check_request(files, settings, str(output))
    with corpus_tasks(ExecutorSection(kind="inline")) as (inline, cpus):
        return build_corpus(Build(files, settings, str(output), map_jobs or inline, cpus, SilentReporter()))


def documents(output: Path, split: str = "*") -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(output.glob(f"c4-{split}.*")):
        if path.suffix == ".parquet":
            rows += pyarrow.parquet.read_table(path).to_pylist()
        else:
            rows += map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    assert len({row["url"] for row in rows}) == len(rows)
    return {row["url"]: row for row in rows}


def bytes_of(output: Path) -> dict[str, bytes]:
    kept = (path for path in output.rglob("*") if path.is_file() and path.name not in (".lock", "time.json"))
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in kept}


def newest(pages: Sequence[Page]) -> Page:
    """Of the pages of one address; of equally new ones the first."""
    return max(pages, key=lambda page: page["timestamp"])


def without_repeated_lines(texts: Mapping[str, str]) -> dict[str, str]:
    """Texts by address, each line only where it stays, computed all at once."""
    everywhere = [
        (page_key(url), number, line_key(line), url, line)
        for url, text in texts.items()
        for number, line in enumerate(text.split("\n"))
    ]
    kept = {key: (rank, number) for rank, number, key, *_ in sorted(everywhere, reverse=True)}
    left: dict[str, list[str]] = {url: [] for url in texts}
    for rank, number, key, url, line in everywhere:
        if kept[key] == (rank, number):
            left[url].append(line)
    return {url: "\n".join(lines) for url, lines in left.items()}
