r"""The corpus beside its peers, one core each: rules alone, the chain of filters, and the whole command.

Run by hand on a quiet machine. Every number comes from a process of its own, pinned to one core; the sides take turns,
so that a machine whose speed drifts moves all of them, and ratios are of medians. MB are 10^6 bytes of raw text in
UTF-8.

    python benchmarks/corpus.py                         our side alone
    python benchmarks/corpus.py --peers PEERS           with the original's functions and datatrove's filters
    python benchmarks/corpus.py --peers PEERS --parity  whether ours and the original read and clean each page alike
    python benchmarks/corpus.py --whole 10 100 1000     `mixtura corpus build` on so many MB
    python benchmarks/corpus.py --whole 100 --write DIR only the input of that

The data folder has raw pages in any format that `corpus build` reads, in folders named wet_from_html, wet and
common_crawl_docs below `web`, and a list of bad words, lists/ldnoobw/en. PEERS holds an environment for each peer:

    python3.11 -m venv PEERS/original
    PEERS/original/bin/pip install --no-deps tensorflow-datasets==4.9.10 nltk langdetect==1.0.9 six regex joblib tqdm \
        click
    python3.11 -m venv PEERS/datatrove
    PEERS/datatrove/bin/pip install datatrove==0.10.1 spacy regex nltk

For `--whole`, pages are copied with their words in another order until there is enough (`corpus_peers/pages.py` says
what a copy keeps).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpus_peers.pages import FOLDERS, lines_of, mutated, raw_pages, short_page, write_copies

from mixtura.platform.corpus.documents import Document
from mixtura.platform.corpus.rules import Rules, as_crawled
from mixtura.platform.corpus.sentences import ABBREVIATIONS

HERE = Path(__file__).resolve().parent
SIDES = HERE / "corpus_peers"
THEIR_REASONS = {"loremipsum": "lorem_ipsum", "squigglybracket": "curly_bracket"}
MUTATIONS, SHORT_PAGES = 3, 20_000


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; our side alone if not given")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--seconds",
        type=float,
        default=8,
        help="that the clock runs for each number, at least, and for whole passes over the pages",
    )
    parser.add_argument("--parity", action="store_true", help="compare what comes out, in place of the time")
    parser.add_argument("--whole", nargs="+", type=float, metavar="MB", help="time the whole command, likewise")
    parser.add_argument("--cores", type=int, default=1, help="for --whole; with 2 the work runs on Ray")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write the input of --whole to a new folder")
    given = parser.parse_args()
    if given.parity and given.peers is None:
        parser.error("--parity compares with the original: give the folder of its environment, --peers PEERS")
    if missing := [name for name in FOLDERS if not (given.data / "web" / name).is_dir()]:
        parser.error(f"{given.data}/web has no folder {', '.join(missing)}: give one with raw pages, --data FOLDER")
    if given.write and (given.write.exists() or not given.whole):
        parser.error(f"--write makes a new folder, {given.write}, of the sizes of --whole")
    os.environ |= {"BAD_WORDS": str(given.data / "lists/ldnoobw/en"), "ABBREVIATIONS": " ".join(sorted(ABBREVIATIONS))}
    pages = list(raw_pages(given.data / "web"))
    with tempfile.TemporaryDirectory() as folder:
        if given.write:
            for size in given.whole:
                write_copies(pages, given.write / f"{size:g}", size)
        elif given.parity:
            parity(pages, given.peers, Path(folder))
        elif given.whole:
            whole(pages, given.whole, given.cores, given.core, Path(folder))
        else:
            table(pages, given, Path(folder))


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
    file = write_texts([as_crawled(page.text, Rules())[0] for page in pages], folder / "pages.jsonl")
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


def parity(pages: Sequence[Document], peers: Path, folder: Path) -> None:
    """Print how many pages come out alike, with the same reasons and counts, and the first that do not."""
    chance, kept = random.Random(0), lines_of(pages)
    texts = [page.text for page in pages]
    texts += [mutated(text, chance) for text in texts for _ in range(MUTATIONS)]
    texts += [short_page(kept, chance) for _ in range(SHORT_PAGES)]
    file = write_texts(texts, folder / "pages.jsonl")
    found = {}
    for name in ("ours", "original"):
        python, script = sides(peers)[name]
        subprocess.run([python, script, file, "0", "parity", folder / name], check=True)
        with open(folder / name, encoding="utf-8") as output:
            found[name] = [json.loads(line) for line in output]
    found["original"] = list(map(as_ours, found["original"]))
    differing = [
        (ours, theirs, text)
        for ours, theirs, text in zip(found["ours"], found["original"], texts, strict=True)
        if ours != theirs
    ]
    print(
        f"{len(texts):,} pages, {len(pages):,} of them as they are and {SHORT_PAGES:,} short ones: "
        f"{len(differing):,} come out otherwise"
    )
    for ours, theirs, text in differing[:5]:
        print(f"  ours {ours['reason']} {ours['lines']}, theirs {theirs['reason']} {theirs['lines']}: {text[:200]!r}")
    outcomes = Counter(page["reason"] or "kept" for page in found["original"])
    lines = sum((Counter(page["lines"]) for page in found["original"]), Counter[str]())
    for what, counts in (("pages", outcomes), ("lines", lines)):
        print(f"  {what}: {', '.join(f'{reason} {count:,}' for reason, count in counts.most_common())}")


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


if __name__ == "__main__":
    main()
