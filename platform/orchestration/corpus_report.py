"""What became of the raw text of a corpus: tables whose sums can be added up, and one page that opens offline."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtura.platform.config import STREAM, leaves, section_of
from mixtura.platform.corpus.accounts import Account
from mixtura.platform.corpus.reasons import LINES, PAGES, in_order
from mixtura.platform.corpus.settings import PRESETS, CorpusSettings
from mixtura.platform.corpus.shards import SPLITS
from mixtura.platform.errors import RequestError
from mixtura.platform.filesystems import absolute, is_uri, last_name, shown
from mixtura.platform.orchestration.corpus import TITLES
from mixtura.platform.orchestration.corpus_made import Corpus
from mixtura.platform.recipe_files import merged
from mixtura.platform.tracking.flow import Branch, flow_svg
from mixtura.platform.tracking.html import check_page_path, write_page

Rows = list[dict[str, Any]]

FILES_SHOWN = 200
_LANGUAGES_SHOWN = 20
_SHARDS_SHOWN = 200
_SET_ASIDE_PRINTED = 20
_CUT = "cut inside pages that stay"
_WIDE, _NARROW = 1000, 352
"""Of the picture, in pixels: on a desk and on a phone."""


def page_place(place: str, output: Path | None) -> Path:
    """Where the page is written: into the corpus's folder, if nothing else is asked for.

    Raises RequestError for a bucket, into which no page is written.
    """
    place = absolute(place)
    if output is None and is_uri(place):
        raise RequestError(f"{shown(place)} is no folder here: say with --output FILE.html where the page is written")
    if output is not None:
        check_page_path(output)
    return output or Path(place) / "report.html"


def record_rows(account: Account) -> Rows:
    """Records that gave no page, and those that did."""
    left_out = {reason: account.records_left_out[reason] for reason, _ in account.records_left_out.most_common()}
    return _with_sum("records", "sum: read", {**left_out, "gave a page": account.pages}, account.records)


def page_rows(account: Account) -> Rows:
    """Pages left out by each reason, what is cut inside the others, and what stays: in the order of the work."""
    rows = [
        _page_row(reason, account.pages_left_out[reason], account.bytes_left_out[reason], account, PAGES.get(reason))
        for reason in in_order(account.pages_left_out, PAGES)
    ]
    rows.append(_page_row(_CUT, None, account.bytes_cut, account, "lines, citation marks, blanks"))
    rows += [
        _page_row(f"out: {split}", account.pages_out[split], account.bytes_out[split], account, "is in the corpus")
        for split in SPLITS
    ]
    return [*rows, _page_row("sum: pages", account.pages, account.page_bytes, account, "all that were read")]


def line_rows(account: Account) -> Rows:
    """Lines left out by each reason, and what became of the others."""
    counts = {reason: account.lines_left_out[reason] for reason in in_order(account.lines_left_out, LINES)}
    counts |= {"repeated": account.lines_repeated, "of pages left out": account.lines_of_pages_left_out}
    why = {
        **LINES,
        "repeated": "stays on another page (duplicates.of)",
        "of pages left out": "is on a page that is left out",
        "out": "is in the corpus",
        "sum: lines": "all that the rules looked at",
    }
    rows = _with_sum("lines", "sum: lines", {**counts, "out": account.lines_out}, account.lines)
    return [{**row, "why": why.get(row["lines"], "")} for row in rows]


def language_rows(account: Account, most: int | None = None) -> Rows:
    """Pages by language, before any is left out for it; behind the most frequent ones the others together."""
    found = Counter(account.languages).most_common()
    counts = dict(found[:most])
    if others := dict(found[len(counts) :]):
        counts[f"{len(others)} others"] = sum(others.values())
    return _with_sum("language", "sum: pages asked", counts, account.languages.total(), "pages")


def split_rows(corpus: Corpus) -> Rows:
    """The shards of each split together."""
    rows = [_split_row(split, shards) for split, shards in corpus.splits.items()]
    return [*rows, _split_row("sum", [shard for shards in corpus.splits.values() for shard in shards])]


def set_aside_rows(corpus: Corpus) -> Rows:
    """Files that could not be read, with the cause."""
    return [{"file": shown(row["file"]), "bytes": row["bytes_read"], "cause": row["cause"]} for row in corpus.set_aside]


def time_rows(corpus: Corpus, price: float | None = None) -> Rows:
    """What each stage took on one core, and what it costs at a price for an hour of a core."""
    whole = sum(corpus.seconds.values())
    rows = [_time_row(corpus, stage, seconds, whole, price) for stage, seconds in corpus.seconds.items()]
    return [*rows, _time_row(corpus, "sum", whole, whole, price)]


def setting_rows(corpus: Corpus) -> Rows:
    """The settings in which the corpus differs from its preset as this version has it."""
    preset = corpus.settings.get("preset", "")
    tree = merged({"preset": preset}, PRESETS.get(preset, {}))
    usual = {path: value for path, effect, value in leaves(section_of(CorpusSettings, tree, "")) if effect is STREAM}
    return [
        {"setting": path, "here": _plain(corpus.settings.get(path)), "preset": _plain(usual.get(path))}
        for path in {**usual, **corpus.settings}
        if corpus.settings.get(path) != usual.get(path)
    ]


def plain_report(corpus: Corpus, price: float | None) -> dict[str, Any]:
    """Everything as plain values: the manifest's account, and the tables that are made of it."""
    return {
        "corpus": shown(corpus.place),
        "account": corpus.account.to_json(),
        "records": record_rows(corpus.account),
        "pages": page_rows(corpus.account),
        "lines": line_rows(corpus.account),
        "languages": language_rows(corpus.account),
        "set_aside": set_aside_rows(corpus),
        "splits": corpus.splits,
        "cpus": corpus.cpus,
        "time": time_rows(corpus, price),
        "settings": setting_rows(corpus),
    }


def tables(corpus: Corpus, price: float | None) -> dict[str, Rows]:
    """The tables of the terminal, by their titles; those that have rows."""
    account = corpus.account
    found = {
        "Records": record_rows(account),
        "Pages": page_rows(account),
        "Lines": line_rows(account),
        "Languages": language_rows(account, _LANGUAGES_SHOWN) if account.languages else [],
        "Files set aside": set_aside_rows(corpus)[:_SET_ASIDE_PRINTED],
        "Shards": split_rows(corpus),
        "Time": time_rows(corpus, price),
        "Settings that differ from the preset": setting_rows(corpus),
    }
    return {title: rows for title, rows in found.items() if rows}


def notes(corpus: Corpus, *, verified: bool) -> Iterator[str]:
    """What a reader of the tables should know."""
    if (more := len(corpus.set_aside) - _SET_ASIDE_PRINTED) > 0:
        yield f"{more:,} more files are set aside: accounts.jsonl has all"
    yield _checked(corpus, verified=verified)


def write_corpus_report(corpus: Corpus, path: Path, price: float | None, *, verified: bool = False) -> None:
    """Write the page."""
    account = corpus.account
    title = "What became of the text of all pages, in bytes"
    branches = _branches(account)
    shards = [shard for shards in corpus.splits.values() for shard in shards]
    files = [_file_row(row) for row in corpus.files]
    values = {
        "name": last_name(corpus.place),
        "what": f"{shown(corpus.place)}: preset {corpus.settings.get('preset', '')}, of {account.files:,} files",
        "numbers": _numbers(corpus),
        "flows": {"wide": flow_svg(branches, title, _WIDE), "narrow": flow_svg(branches, title, _NARROW)},
        "account": account,
        "records": record_rows(account),
        "pages": page_rows(account),
        "lines": line_rows(account),
        "languages": language_rows(account, _LANGUAGES_SHOWN),
        "splits": split_rows(corpus),
        "shards": shards[:_SHARDS_SHOWN],
        "more_shards": max(0, len(shards) - _SHARDS_SHOWN),
        "checked": _checked(corpus, verified=verified),
        "set_aside": set_aside_rows(corpus)[:FILES_SHOWN],
        "more_set_aside": max(0, len(corpus.set_aside) - FILES_SHOWN),
        "time": time_rows(corpus, price),
        "cpus": corpus.cpus,
        "settings": setting_rows(corpus),
        "preset": corpus.settings.get("preset", ""),
        "samples": list(_samples(corpus)),
        "longest": corpus.samples["longest_lines"],
        "repeated": corpus.samples["most_repeated"],
        "files": files,
        "more_files": account.files - len(files),
        "made": f"Made by Mixtura on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
    }
    write_page("corpus.html", values, path)


def _checked(corpus: Corpus, *, verified: bool) -> str:
    shards = sum(map(len, corpus.splits.values()))
    if verified:
        return f"all {shards:,} shards have the digests with which they were written"
    return f"all {shards:,} shards are there with their sizes; --verify reads them and checks their digests"


def _with_sum(head: str, end: str, counts: Mapping[str, int], whole: int, unit: str = "count") -> Rows:
    rows = [{head: name, unit: count, "%": _percent(count, whole)} for name, count in counts.items()]
    return [*rows, {head: end, unit: sum(counts.values()), "%": _percent(sum(counts.values()), whole)}]


def _page_row(name: str, pages: int | None, size: int, account: Account, why: str | None) -> dict[str, Any]:
    return {
        "pages": name,
        "count": pages,
        "% of pages": None if pages is None else _percent(pages, account.pages),
        "bytes of text": size,
        "% of text": _percent(size, account.page_bytes),
        "why": why or "",
    }


def _split_row(split: str, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = [shard["bytes"] for shard in shards]
    return {
        "split": split,
        "shards": len(shards),
        "documents": sum(shard["documents"] for shard in shards),
        "bytes of text": sum(shard["text_bytes"] for shard in shards),
        "bytes of files": sum(sizes),
        "smallest": min(sizes, default=0),
        "largest": max(sizes, default=0),
    }


def _time_row(corpus: Corpus, stage: str, seconds: float, whole: float, price: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": TITLES.get(stage, stage),
        "core seconds": round(seconds, 2),
        "%": _percent(seconds, whole),
        "MB/s of raw text": corpus.account.page_bytes / 1e6 / seconds if seconds else None,
    }
    if price is not None:
        row["cost"] = round(seconds / 3600 * price, 6)
    return row


def _file_row(row: Mapping[str, Any]) -> dict[str, Any]:
    left_out = max(row["bytes_left_out"].items(), key=lambda one: one[1], default=("", 0))
    pages, out = sum(row["pages_out"].values()), sum(row["bytes_out"].values())
    return {
        "file": shown(row["file"]),
        "bytes": row["bytes_read"],
        "records": row["records"],
        "pages": row["pages"],
        "bytes of text": row["page_bytes"],
        "documents": pages,
        "bytes out": out,
        "% of text": _percent(out, row["page_bytes"]),
        "mostly left out as": "set aside" if row["cause"] else left_out[0],
    }


def _numbers(corpus: Corpus) -> list[tuple[str, str]]:
    account, seconds = corpus.account, sum(corpus.seconds.values())
    pages, size = account.pages_out.total(), account.bytes_out.total()
    rate = f"{account.page_bytes / 1e6 / seconds:,.3g} MB/s" if seconds else "-"
    return [
        (f"{pages:,}", f"documents: {_percent(pages, account.pages):.1f} % of the pages"),
        (
            _megabytes(size),
            f"of clean text: {_percent(size, account.page_bytes):.1f} % of {_megabytes(account.page_bytes)}",
        ),
        (f"{account.files - account.set_aside:,}", f"files read; {account.set_aside:,} set aside"),
        (f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:.3g} s", "of one core, all stages"),
        (rate, "of raw text on one core"),
    ]


def _branches(account: Account) -> list[Branch]:
    branches = [
        Branch(reason, account.bytes_left_out[reason], _note(size, account.pages_left_out[reason], "page"), "lost")
        for reason in in_order(account.bytes_left_out, PAGES)
        if (size := account.bytes_left_out[reason])
    ]
    branches.append(Branch(_CUT, account.bytes_cut, _megabytes(account.bytes_cut), "cut"))
    branches += [
        Branch(split, size, _note(size, account.pages_out[split], "document"), "kept")
        for split in SPLITS
        if (size := account.bytes_out[split])
    ]
    return branches


def _note(size: int, count: int, what: str) -> str:
    return f"{_megabytes(size)}, {count:,} {what}{'s' * (count != 1)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _samples(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Of each kind its reasons with what they mean, how often they are given, and some of what was left out."""
    account = corpus.account
    kinds: Sequence[tuple[str, str, Mapping[str, int], Mapping[str, str]]] = (
        ("pages", "Pages left out", account.pages_left_out, PAGES),
        ("lines", "Lines left out", account.lines_left_out, LINES),
        ("records", "Records that gave no page", account.records_left_out, {}),
    )
    for kind, title, counts, known in kinds:
        found = corpus.samples[kind]
        reasons = [
            {"name": reason, "why": known.get(reason, ""), "count": counts.get(reason), "texts": found[reason]}
            for reason in in_order(found, known)
        ]
        if reasons:
            yield {"title": title, "kind": kind, "reasons": reasons}


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
