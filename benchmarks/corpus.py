r"""The corpus beside its peers, one core each: rules alone, the chain of filters, and the whole command.

Run by hand on a quiet machine. Every number comes from a process of its own, pinned to one core; the sides take turns,
so that a machine whose speed drifts moves all of them, and ratios are of medians. MB are 10^6 bytes of raw text in
UTF-8.

    python benchmarks/corpus.py                         our side alone
    python benchmarks/corpus.py --peers PEERS           with the original's functions and datatrove's filters
    python benchmarks/corpus.py --peers PEERS --parity  whether ours and the original's rules agree on each page
    python benchmarks/corpus.py --whole 10 100 1000     `mixtura corpus build` on so many MB

The data folder has raw pages in any format that `corpus build` reads, in folders named wet_from_html, wet and
common_crawl_docs below `web`, and a list of bad words, lists/ldnoobw/en. PEERS holds an environment for each peer:

    python3.11 -m venv PEERS/original
    PEERS/original/bin/pip install --no-deps tensorflow-datasets==4.9.10 nltk langdetect==1.0.9 six regex joblib tqdm \
        click
    python3.11 -m venv PEERS/datatrove
    PEERS/datatrove/bin/pip install datatrove==0.10.1 spacy regex nltk

For `--whole`, pages are copied until there is enough: a number is put into nine of ten lines of a copy, so that copies
stay distinct and about as many lines repeat as in the pages; languages are mixed as they are there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtura.platform.corpus.documents import Document
from mixtura.platform.corpus.readers import read_documents
from mixtura.platform.corpus.rules import Rules, as_crawled
from mixtura.platform.corpus.sentences import ABBREVIATIONS

HERE = Path(__file__).resolve().parent
SIDES = HERE / "corpus_peers"
THEIR_REASONS = {"loremipsum": "lorem_ipsum", "squigglybracket": "curly_bracket"}
MUTATIONS = 3
_FOLDERS = ("wet_from_html", "wet", "common_crawl_docs")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; our side alone if not given")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="that the clock runs for each number, at least")
    parser.add_argument("--parity", action="store_true", help="compare what comes out, in place of the time")
    parser.add_argument("--whole", nargs="+", type=float, metavar="MB", help="time the whole command, likewise")
    parser.add_argument("--cores", type=int, default=1, help="for --whole; with 2 the work runs on Ray")
    given = parser.parse_args()
    if given.parity and given.peers is None:
        parser.error("--parity compares with the original: give the folder of its environment, --peers PEERS")
    if missing := [name for name in _FOLDERS if not (given.data / "web" / name).is_dir()]:
        parser.error(f"{given.data}/web has no folder {', '.join(missing)}: give one with raw pages, --data FOLDER")
    os.environ |= {"BAD_WORDS": str(given.data / "lists/ldnoobw/en"), "ABBREVIATIONS": " ".join(sorted(ABBREVIATIONS))}
    pages = list(raw_pages(given.data / "web"))
    with tempfile.TemporaryDirectory() as folder:
        if given.parity:
            parity(pages, given.peers, Path(folder))
        elif given.whole:
            whole(pages, given.whole, given.cores, given.core, Path(folder))
        else:
            table(pages, given, Path(folder))


def raw_pages(web: Path) -> Iterator[Document]:
    """Each page once."""
    seen = set()
    for path in (path for name in _FOLDERS for path in sorted((web / name).iterdir())):
        for item in read_documents(str(path)):
            if isinstance(item, Document) and item.text not in seen:
                seen.add(item.text)
                yield item


def sides(peers: Path | None) -> dict[str, tuple[Path, Path]]:
    """Of each side its Python and its script."""
    found = {"ours": (Path(sys.executable), SIDES / "ours.py")}
    if peers is not None:
        found["original"] = peers / "original/bin/python", SIDES / "original.py"
        found["datatrove"] = peers / "datatrove/bin/python", SIDES / "with_datatrove.py"
    return found


def write_texts(texts: Sequence[str], path: Path) -> Path:
    """Pages for the sides to read."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


def table(pages: Sequence[Document], given: argparse.Namespace, folder: Path) -> None:
    """Print the speed of every side."""
    # The originals' parser has left out empty lines before its rules are asked: for all sides alike.
    texts = [as_crawled(page.text, Rules())[0] for page in pages]
    random.Random(0).shuffle(texts)  # a side too slow for one pass meets pages of all kinds, too
    file = write_texts(texts, folder / "pages.jsonl")
    size = sum(len(page.text.encode()) for page in pages) / 1e6
    print(f"{len(pages):,} pages, {size:.2f} MB; core {given.core}, {given.repeats} turns")
    numbers: dict[tuple[str, str], list[float]] = {}
    kept: dict[tuple[str, str], float] = {}
    for _ in range(given.repeats):
        for name, (python, script) in sides(given.peers).items():
            for what in ("rules", "chain"):
                command = ["taskset", "-c", str(given.core), python, script, file, str(given.seconds), what]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                values = json.loads(done.stdout.splitlines()[-1])
                numbers.setdefault((name, what), []).append(values["MB/s"])
                kept[name, what] = values["kept"]
    for (name, what), found in numbers.items():
        middle = statistics.median(found)
        ratio = statistics.median(numbers["ours", what]) / middle
        spread = f"[{min(found):.2f} ... {max(found):.2f}]"
        print(f"{name:10} {what:6} {middle:7.2f} MB/s {spread}, keeps {kept[name, what]:.1%}; ours {ratio:.1f} x")


BEHIND = (
    *(".", "...", "!", "?", ",", ":", ")", ".)", "..", " .", '"'),
    *("\N{HORIZONTAL ELLIPSIS}", "\N{RIGHT DOUBLE QUOTATION MARK}", " { }.", " and JavaScript.", " Lorem Ipsum dolor."),
    *(" are the terms of use.", " We Use Cookies.", "\nIt was. And so."),
    *(f" {'x' * length} and so on." for length in (999, 1000, 1001)),
    # Of two rules that a line breaks, the first decides.
    *(" Lorem ipsum, {JavaScript}.", " Lorem ipsum of JavaScript.", " {JavaScript}.", " {our privacy policy}."),
    *(" JavaScript uses cookies.", " Lorem ipsum uses cookies.", f" {'x' * 1001} {{lorem ipsum}}."),
)
BETWEEN = (
    *("[3] ", "[] ", "[edit] ", "[citation needed] ", " [x] "),
    *("\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\t", "\xa0"),
)
BEFORE = ("Dr. ", "e.g. ", "U.S. ", "3.5 ", "No. ", "A. B. ", "It did. ")


def mutated(text: str, chance: random.Random) -> str:
    """A page with a few lines changed into what rules ask about."""
    lines = text.split("\n")
    for _ in range(chance.randrange(1, 8)):
        place = chance.randrange(len(lines))
        line = lines[place]
        match chance.randrange(4):
            case 0:
                lines[place] = line[: chance.randrange(len(line) + 1)]
            case 1:
                lines[place] = line + chance.choice(BEHIND)
            case 2:
                lines[place] = line.replace(" ", chance.choice(BETWEEN), 2) + "."
            case _:
                lines[place] = chance.choice(BEFORE) + line
    return "\n".join(lines)


def parity(pages: Sequence[Document], peers: Path, folder: Path) -> None:
    """Print how many pages come out alike, with the same reasons and counts, and the first that do not."""
    chance = random.Random(0)
    texts = [as_crawled(page.text, Rules())[0] for page in pages]
    texts += [mutated(text, chance) for text in texts if text for _ in range(MUTATIONS)]
    texts = [text for text in texts if len(text) <= 190_000]
    file = write_texts(texts, folder / "pages.jsonl")
    found = {}
    for name in ("ours", "original"):
        python, script = sides(peers)[name]
        subprocess.run([python, script, file, "0", "parity", folder / name], check=True)
        with open(folder / name, encoding="utf-8") as output:
            found[name] = [json.loads(line) for line in output]
    differing = [
        (ours, theirs, text)
        for ours, theirs, text in zip(found["ours"], map(as_ours, found["original"]), texts, strict=True)
        if ours != theirs
    ]
    print(f"{len(texts):,} pages, {len(pages):,} of them as they are: {len(differing)} come out otherwise")
    for ours, theirs, text in differing[:5]:
        print(f"  ours {ours['reason']} {ours['lines']}, theirs {theirs['reason']} {theirs['lines']}: {text[:200]!r}")


def as_ours(result: Mapping[str, Any]) -> dict[str, Any]:
    """The original's counters under our names."""
    reason, lines = None, {}
    for name, count in result["counts"].items():
        what = name.removeprefix("clean-page/")
        last = what.rpartition(":")[2]
        if what == "line-passed":
            lines["kept"] = count
        elif what.startswith("line-filtered:"):
            lines[THEIR_REASONS.get(last, last)] = count
        elif what.startswith("filtered:"):
            reason = THEIR_REASONS.get(last, last)
    return {"text": result["text"], "reason": reason, "lines": lines}


def whole(pages: Sequence[Document], sizes: Sequence[float], cores: int, core: int, folder: Path) -> None:
    """Print the speed of the whole command on inputs of several sizes."""
    for size in sizes:
        source, output = folder / f"{size:g}", folder / f"corpus-{size:g}"
        source.mkdir()
        write_copies(pages, source, size)
        command = [
            *(() if cores > 1 else ("taskset", "-c", str(core))),
            *(sys.executable, "-m", "mixtura.platform.cli.main", "corpus", "build", "-i", f"{source}/*"),
            *("--output", str(output), "--bad-words", f"en={os.environ['BAD_WORDS']}"),
            *(() if cores > 1 else ("executor.kind=inline",)),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        account = json.loads((output / "manifest.json").read_text())["account"]
        spent = json.loads((output / "time.json").read_text())["seconds"]
        text, seconds = account["page_bytes"] / 1e6, sum(spent.values())
        parts = [f"{name} {1000 * value / text:.1f}" for name, value in spent.items() if value > seconds / 1000]
        speed = f"{text:8.1f} MB  {text / seconds:6.2f} MB/s of a core  {1000 * seconds / text:6.1f} ms a MB"
        print(f"{speed} ({', '.join(parts)})")


def write_copies(pages: Sequence[Document], folder: Path, size: float) -> None:
    """Pages as WET, a file for each copy of all of them, until there are so many MB."""
    left, copy = size * 1e6, 0
    while left > 0:
        chance = random.Random(copy)
        with open(folder / f"{copy:05d}.warc.wet.gz", "wb") as file:
            for page in pages:
                lines = page.text.split("\n")
                text = "\n".join(f"{line[:-1]} {copy}{line[-1:]}" if chance.random() < 0.9 else line for line in lines)
                body = text.encode()
                header = (
                    f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://copy-{copy}.com/{page.url}\r\n"
                    f"WARC-Date: 2024-01-01T00:00:00Z\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                file.write(gzip.compress(header.encode() + body + b"\r\n\r\n", 3))  # a member a record, as a crawl's
                left -= len(body)
                if left <= 0:
                    break
        copy += 1


if __name__ == "__main__":
    main()
