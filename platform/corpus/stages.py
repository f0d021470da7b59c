"""The work of making a corpus, as functions over one file, one range of keys, or one shard.

    read      file     pages with what the rules make of them; keys of addresses
    judge     range    of equal addresses the newest page
    mark      file     keys of the lines, or spans of sentences, of the pages that are left
    judge     range    of equal lines the one on the page of the smallest hash
    finish    file     pages without the lines that lost; their language, bad words, split; the file's account
    shingle, judge, thin                 the same for pages that are nearly equal, if asked for
    pack      shard    an even share of all documents, in the order of the files' names

Each function leaves its result in files that are whole or absent, and nothing in it depends on what else runs: whatever
interrupts the work, it goes on from the files that are there and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from mixtura.platform.corpus.accounts import Account, Samples
from mixtura.platform.corpus.bad_words import BadWords
from mixtura.platform.corpus.documents import Damaged, Document
from mixtura.platform.corpus.duplicates import line_key, page_key, with_lines
from mixtura.platform.corpus.keys import KeyRuns, Run, Verdict, judge, read_verdicts
from mixtura.platform.corpus.language import UNKNOWN, Language, identifier
from mixtura.platform.corpus.near_duplicates import band_keys
from mixtura.platform.corpus.readers import Item, read_documents
from mixtura.platform.corpus.rules import (
    LINE_REASONS,
    OF_PAGES,
    Page,
    as_crawled,
    clean_page,
    left_out_lines,
    too_long,
)
from mixtura.platform.corpus.sentences import Count, sentence_counter, sentence_splitter
from mixtura.platform.corpus.settings import CorpusSettings
from mixtura.platform.corpus.spans import sentences_of, span_keys, without_spans
from mixtura.platform.corpus.tables import TableWriter, read_rows
from mixtura.platform.corpus.urls import AddressList, Domains, normalized, split_of
from mixtura.platform.corpus.work_files import write, writing
from mixtura.platform.errors import DataError, MixturaError, ResourceError
from mixtura.platform.filesystems import joined, may_pass, shown

Job = dict[str, Any]

SAME_ADDRESS = "same_address"
OTHER_DOMAIN = "other_domain"
NOT_ON_LIST = "not_on_list"
NOTHING_LEFT = "nothing_left"
FEW_SENTENCES_LEFT = "too_few_sentences_left"
OTHER_LANGUAGE = "other_language"
BAD_WORDS = "bad_words"
NEARLY_EQUAL = "nearly_equal"

_SAMPLED_ONE_IN = 32
_SAMPLE_CHARACTERS = 300
_LATEST = 10**14
_MOST_REPEATED = 20
_LONGEST = 3

PAGES = pa.schema(
    [
        ("url", pa.string()),
        ("timestamp", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("reason", pa.string()),
        ("size", pa.int64()),
        ("lines", pa.list_(pa.uint32())),
    ]
)
DOCUMENTS = pa.schema(
    [
        ("text", pa.string()),
        ("url", pa.string()),
        ("timestamp", pa.string()),
        ("language", pa.string()),
        ("language_probability", pa.float32()),
        ("source", pa.string()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class FileJob:
    """A stage's work on one input file, or on its pages."""

    work: str
    """folder or bucket of what lies between the stages"""
    index: int
    file: str
    size: int
    settings: Mapping[str, Any]
    files: int = 0
    """how many there are"""
    verdicts: tuple[int, int, int] = (0, 0, 0)
    """how many jobs judged addresses, text and near duplicates"""
    dropped: str = ""
    """where pages that are left out are written, by reason; nowhere if empty"""

    @property
    def chosen(self) -> CorpusSettings:
        """The settings."""
        return _settings(json.dumps(self.settings, sort_keys=True))

    def place(self, stage: str, ending: str = "") -> str:
        """Where a stage's result of this file is."""
        return joined(self.work, stage, f"{self.index:06d}{ending}")

    def verdict(self, kind: str) -> Verdict:
        """What was judged of this file's places: `addresses`, `text` or `near`."""
        jobs = self.verdicts[KINDS.index(kind)]
        places = [verdict_place(self.work, kind, number) for number in range(jobs)]
        return read_verdicts(places, self.files, self.index, self.place(f"{kind}.keys"))


KINDS = ("addresses", "text", "near")
"""What can be equal."""


def verdict_place(work: str, kind: str, number: int) -> str:
    """Where a job leaves its verdict."""
    return joined(work, f"{kind}.verdicts", f"{number:04d}")


def entry_place(work: str, stage: str, index: int) -> str:
    """Where it stands that a job is done; written last."""
    return joined(work, f"{stage}.done", f"{index:06d}.json")


class SetAsideError(Exception):
    """A file that cannot be read, with the cause."""


def read_file(given: Job) -> Job:
    """Read a file's records, apply the rules to its pages, and write the keys of their addresses.

    A file that cannot be read is set aside with its cause, and gives no pages; faults of the network are no such cause.
    """
    job, begun = FileJob(**given), time.perf_counter()
    settings = job.chosen
    account = Account(files=1, bytes_read=job.size)
    records, lines = Samples(), Samples()
    keys = KeyRuns(job.place("addresses.keys"))
    try:
        with writing(job.place("pages", ".arrow")) as file:
            table = TableWriter(file, PAGES)
            for item in _items(job, settings.largest):
                account.records += 1
                if isinstance(item, Damaged):
                    account.records_left_out[item.reason] += 1
                    records.add(item.reason, f"{item.where}: {item.sample}")
                    continue
                _take_page(item, settings, table, keys, account, lines)
            table.close()
    except SetAsideError as error:
        return set_aside_file(given, str(error))
    keys.close()
    entry = {"pages": account.pages, "text_bytes": account.page_bytes, "runs": keys.runs, "batches": table.batches}
    _write_samples(job, {"records": records.found, "lines": lines.found})
    return _done(job, "read", {**entry, "account": account.to_json(), "set_aside": ""}, begun)


def set_aside_file(given: Job, cause: str) -> Job:
    """Note a file that nobody could read, whatever was tried."""
    job = FileJob(**given)
    keys = KeyRuns(job.place("addresses.keys"))
    keys.close()
    account = Account(files=1, set_aside=1, bytes_read=job.size)
    entry = {"pages": 0, "text_bytes": 0, "runs": [], "batches": [], "account": account.to_json()}
    told = cause if shown(job.file) in cause else f"{shown(job.file)}: {cause}"
    return _done(job, "read", {**entry, "set_aside": told}, time.perf_counter())


def _items(job: FileJob, largest: int) -> Iterator[Item]:
    """The reader's items; whatever is wrong with the file, and not with us, as one error."""
    file = job.file
    reader = read_documents(file, largest)
    while True:
        try:
            item = next(reader, None)
        except MixturaError as error:
            if may_pass(error) or not isinstance(error, DataError):
                raise
            if job.size and isinstance(error.__cause__, FileNotFoundError):
                raise ResourceError(
                    f"{shown(file)} was there when the work began, and is not where a worker reads it "
                    f"({socket.gethostname()}): inputs have to be on a disk that all machines share, or in a bucket"
                ) from error
            raise SetAsideError(str(error)) from error
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a parser stumbles over in a file must not end the work on the others
            raise SetAsideError(f"{shown(file)} cannot be read: {type(error).__name__}: {error}") from error
        if item is None:
            return
        yield item


def _take_page(
    page: Document, settings: CorpusSettings, table: TableWriter, keys: KeyRuns, account: Account, lines: Samples
) -> None:
    size = byte_length(page.text)
    account.pages += 1
    account.page_bytes += size
    text, headers = as_crawled(page.text, settings.rules)
    url = page.url or stand_in(text)
    reason, counts = _early(url, text, settings), [0] * (len(LINE_REASONS) + 2)
    cleaned = Page(None, reason)
    if reason is None:
        rank = _LATEST - int("".join(filter(str.isdigit, page.timestamp[:19])) or 0)
        if settings.addresses.newest:
            keys.add(page_key(normalized(url)), rank, table.rows)
        cleaned = _cleaned(url, text, settings)
        counts = _line_counts(cleaned, headers, settings)
        if page_key(url)[0] % _SAMPLED_ONE_IN == 0:
            for why, line in left_out_lines(text, settings.rules) if settings.rules.clean else ():
                lines.add(why, line[:_SAMPLE_CHARACTERS])
    left = cleaned.text
    if left is None:
        left = text if settings.shards.dropped else text[:_SAMPLE_CHARACTERS]
    row = (url, page.timestamp, str(page.origin), left, cleaned.reason, size, counts)
    table.add(row, len(left))


def byte_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def stand_in(text: str) -> str:
    """What stands for the address of a page that has none, so that equal pages have equal ones."""
    return f"urn:md5:{line_key(text).hex()}"


def _early(url: str, text: str, settings: CorpusSettings) -> str | None:
    if reason := too_long(text, settings.rules):
        return reason
    domains = settings.addresses.domains
    return OTHER_DOMAIN if domains is not None and not _domains(domains).has(url) else None


def _cleaned(url: str, text: str, settings: CorpusSettings) -> Page:
    urls = settings.addresses.urls
    if urls is not None and not _address_list(urls).has(url):
        return Page(None, NOT_ON_LIST)
    return clean_page(text, settings.rules, _counter(settings.punkt))


def _line_counts(page: Page, headers: int, settings: CorpusSettings) -> list[int]:
    """Of a page the lines left out under each reason, those kept, and whether one more had the page left out."""
    of_line = page.reason in OF_PAGES and not settings.rules.anywhere
    kept = page.lines.get("kept", 0)
    if page.text is not None and not settings.rules.clean:
        kept = page.text.count("\n") + 1
    reasons = [page.lines.get(reason, 0) + headers * (reason == "header_like") for reason in LINE_REASONS]
    return [*reasons, kept, int(of_line)]


def judge_keys(given: Job) -> Job:
    """Say which places of a kind lose, in a range of all keys."""
    work, kind, number, files = given["work"], given["kind"], given["index"], given["files"]
    begun = time.perf_counter()
    keys = f"{kind}.keys"
    runs = [Run(file, joined(work, keys, f"{file:06d}"), run) for file, count in given["runs"] for run in range(count)]
    repeated = judge(
        runs,
        tuple(given["buckets"]),
        verdict_place(work, kind, number),
        files,
        tell_kept=given["tell_kept"],
        most_repeated=_MOST_REPEATED if kind == "text" else 0,
    )
    entry = {"index": number, "repeated": [vars(one) for one in repeated], "seconds": time.perf_counter() - begun}
    write(entry_place(work, f"{kind}.judge", number), json.dumps(entry).encode())
    return entry


def mark_text(given: Job) -> Job:
    """Write the keys of the lines, or spans of sentences, of the pages that the rules and the addresses have left."""
    job, begun = FileJob(**given), time.perf_counter()
    settings = job.chosen
    lost = job.verdict("addresses").pages() if settings.addresses.newest else frozenset()
    keys = KeyRuns(job.place("text.keys"))
    for number, (url, text, reason) in enumerate(read_rows(job.place("pages", ".arrow"), ("url", "text", "reason"))):
        if reason is not None or number in lost:
            continue
        rank = int.from_bytes(page_key(url)[:8], "big")
        for line, key in enumerate(_text_keys(text, settings)):
            keys.add(key, rank, number, line)
    keys.close()
    return _done(job, "mark", {"runs": keys.runs}, begun)


def _text_keys(text: str, settings: CorpusSettings) -> Iterator[bytes]:
    if settings.duplicates.of == "lines":
        yield from map(line_key, text.split("\n"))
    else:
        yield from span_keys(sentences_of(text, _splitter(settings.punkt)), settings.duplicates.span_sentences)


def unit_at(text: str, number: int, settings: CorpusSettings) -> str:
    """What a key of a page's text stands for: a line, or a span of sentences by its first."""
    if settings.duplicates.of == "lines":
        return text.split("\n")[number]
    sentences = sentences_of(text, _splitter(settings.punkt))[number : number + settings.duplicates.span_sentences]
    return " ".join(sentence.text for sentence in sentences)


class _Fate(NamedTuple):
    """What becomes of a page: its text, or the reason why it is left out."""

    text: str
    reason: str | None
    language: Language = Language(UNKNOWN, 0.0)


def finish_file(given: Job) -> Job:
    """Take away the lines that lost, look at language and bad words, and write the documents and the file's account."""
    job, begun = FileJob(**given), time.perf_counter()
    settings = job.chosen
    account, samples, longest = Account(), Samples(), _Longest()
    lost = job.verdict("addresses").pages() if settings.addresses.newest else frozenset()
    verdict = job.verdict("text") if settings.duplicates.of else None
    lost_lines, kept_lines = (verdict.lines(), verdict.kept_lines()) if verdict else ({}, {})
    with writing(job.place("documents", ".arrow")) as file, _Dropped(job) as dropped:
        table = TableWriter(file, DOCUMENTS)
        sizes: list[tuple[int, int]] = []
        for number, (url, timestamp, source, text, reason, size, lines) in enumerate(
            read_rows(job.place("pages", ".arrow"), PAGES.names)
        ):
            address = normalized(url)
            if reason is None and number not in lost:
                fate = _fate(text, address, settings, lost_lines.get(number, ()), kept_lines.get(number, ()), account)
            else:
                fate = _Fate(text, SAME_ADDRESS if number in lost else reason)
            if number not in lost:
                _count_lines(account, lines, fate)
            if fate.reason is not None:
                account.leave_out(fate.reason, size)
                samples.add(fate.reason, _sample(url, fate.text))
                dropped.write(fate.reason, url, timestamp, source, fate.text)
                continue
            out, split = byte_length(fate.text), split_of(address)
            account.keep(split, size, out)
            longest.look_at(fate.text)
            code, probability = fate.language
            table.add((fate.text, url, timestamp, code, probability, source, split), out)
            sizes.append((out, split == "validation"))
        table.close()
    _write_samples(job, {"pages": samples.found})
    entry = {"account": account.to_json(), "longest": longest.found}
    return _done(job, "finish", {**entry, **_where(table, sizes)}, begun)


def _fate(
    text: str,
    address: str,
    settings: CorpusSettings,
    lost: Collection[int],
    kept: Collection[int],
    account: Account,
) -> _Fate:
    if settings.duplicates.of:
        if lost and settings.duplicates.of == "lines":
            numbers = set(range(text.count("\n") + 1)).difference(lost)
            text = with_lines(text, numbers)
        elif lost:
            splitter, length = _splitter(settings.punkt), settings.duplicates.span_sentences
            text = without_spans(text, splitter, length, lost, kept)
        text = text.strip()
        if not text:
            return _Fate(text, NOTHING_LEFT)
        fewest = settings.rules.fewest_sentences
        if fewest and _counter(settings.punkt)(text, fewest) < fewest:
            return _Fate(text, FEW_SENTENCES_LEFT)
    language = identifier(settings.language.identifier, settings.language.keep)(text)
    account.languages[language.code] += 1
    sure = language.probability >= settings.language.probability
    if settings.language.keep is None:
        language = language if sure else Language(UNKNOWN, language.probability)
    elif not sure or language.code not in settings.language.keep:
        return _Fate(text, OTHER_LANGUAGE, language)
    if settings.bad_words.files:
        words = _bad_words(json.dumps(settings.bad_words.files, sort_keys=True))
        if words.dropped(text, language.code, address, settings.bad_words.share):
            return _Fate(text, BAD_WORDS, language)
    return _Fate(text, None, language)


def _count_lines(account: Account, lines: Sequence[int], fate: _Fate) -> None:
    *left_out, kept, of_line = lines
    account.lines += sum(left_out) + kept + of_line
    for reason, count in zip(LINE_REASONS, left_out, strict=True):
        if count:
            account.lines_left_out[reason] += count
    if fate.reason is not None:
        account.lines_of_pages_left_out += kept + of_line
    else:
        out = fate.text.count("\n") + 1
        account.lines_out += out
        account.lines_repeated += kept - out


def _sample(url: str, text: str) -> str:
    return f"{url[:_SAMPLE_CHARACTERS]}: {text[:_SAMPLE_CHARACTERS]}"


def shingle_file(given: Job) -> Job:
    """Write the keys by which pages that are nearly equal are found."""
    job, begun = FileJob(**given), time.perf_counter()
    choice = job.chosen.duplicates
    keys = KeyRuns(job.place("near.keys"))
    for number, (text, url) in enumerate(read_rows(job.place("documents", ".arrow"), ("text", "url"))):
        rank = int.from_bytes(page_key(url)[:8], "big")
        for key in band_keys(text, choice.near_words, choice.near_bands, choice.near_rows):
            keys.add(key, rank, number)
    keys.close()
    return _done(job, "shingle", {"runs": keys.runs}, begun)


def thin_file(given: Job) -> Job:
    """Leave out the documents that are nearly equal to others."""
    job, begun = FileJob(**given), time.perf_counter()
    lost, account, samples = job.verdict("near").pages(), Account(), Samples()
    sizes: list[tuple[int, int]] = []
    with writing(job.place("thinned", ".arrow")) as file, _Dropped(job) as dropped:
        table = TableWriter(file, DOCUMENTS)
        for number, row in enumerate(read_rows(job.place("documents", ".arrow"), DOCUMENTS.names)):
            text, url, timestamp, _, _, source, split = row
            size = byte_length(text)
            if number not in lost:
                table.add(row, size)
                sizes.append((size, split == "validation"))
                continue
            account.leave_out(NEARLY_EQUAL, size)
            account.pages_out[split] -= 1
            account.bytes_out[split] -= size
            lines = text.count("\n") + 1
            account.lines_out -= lines
            account.lines_of_pages_left_out += lines
            samples.add(NEARLY_EQUAL, _sample(url, text))
            dropped.write(NEARLY_EQUAL, url, timestamp, source, text)
        table.close()
    _write_samples(job, {"near": samples.found})
    return _done(job, "thin", {"account": account.to_json(), **_where(table, sizes)}, begun)


def _where(table: TableWriter, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Of each batch the first row, and the bytes of each split before it; and of each split all bytes and documents."""
    before: list[list[int]] = []
    sums, documents, begins = [0, 0], [0, 0], set(table.batches)
    for number, (size, split) in enumerate(sizes):
        if number in begins:
            before.append(list(sums))
        sums[split] += size
        documents[split] += 1
    return {"batches": before, "bytes": sums, "documents": documents}


def _write_samples(job: FileJob, found: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Apart from what the job says: of all files together they would be too many to be held."""
    for kind, samples in found.items():
        if samples:
            write(job.place(f"{kind}.samples", ".json"), json.dumps(samples).encode())


def _done(job: FileJob, stage: str, entry: Job, begun: float) -> Job:
    entry = {"index": job.index, **entry, "seconds": time.perf_counter() - begun}
    write(entry_place(job.work, stage, job.index), json.dumps(entry).encode())
    return entry


class _Longest:
    """The longest lines of a file's documents."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        """Their characters, and how they begin."""

    def look_at(self, text: str) -> None:
        """Take a document's longest line if it is among the longest."""
        line = max(text.split("\n"), key=len)
        if len(self.found) < _LONGEST or len(line) > self.found[-1][0]:
            found = [*self.found, (len(line), line[:_SAMPLE_CHARACTERS])]
            self.found = sorted(found, key=lambda one: (-one[0], one[1]))[:_LONGEST]


class _Dropped:
    """Pages that are left out, as JSON lines in a folder of each reason, if they are wanted."""

    def __init__(self, job: FileJob) -> None:
        self._job, self._stack = job, contextlib.ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, reason: str, url: str, timestamp: str, source: str, text: str) -> None:
        """A page as it was when it was left out."""
        if not self._job.dropped:
            return
        if reason not in self._files:
            place = joined(self._job.dropped, reason, f"{self._job.index:06d}.jsonl.gz")
            raw = self._stack.enter_context(writing(place))
            self._files[reason] = self._stack.enter_context(gzip.GzipFile("", "wb", 4, raw, mtime=0))
        row = {"url": url, "timestamp": timestamp, "source": source, "text": text}
        self._files[reason].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


# Made once in each process: parameters of Punkt, lists and patterns take time to read.


@functools.lru_cache(maxsize=4)
def _settings(values: str) -> CorpusSettings:
    return CorpusSettings(**json.loads(values))


@functools.lru_cache(maxsize=4)
def _counter(punkt: str | None) -> Count:
    return sentence_counter(Path(punkt) if punkt else None)


@functools.lru_cache(maxsize=4)
def _splitter(punkt: str | None) -> Callable[[str], list[tuple[int, int]]]:
    return sentence_splitter(Path(punkt) if punkt else None)


@functools.lru_cache(maxsize=4)
def _domains(path: str) -> Domains:
    return Domains.read(Path(path))


@functools.lru_cache(maxsize=2)
def _address_list(path: str) -> AddressList:
    return AddressList.read(Path(path))


@functools.lru_cache(maxsize=4)
def _bad_words(files: str) -> BadWords:
    return BadWords.read({language: Path(path) for language, path in json.loads(files).items()})


def lists_of(settings: CorpusSettings) -> set[str]:
    """The files that settings name, which decide the corpus by what is in them."""
    given = (settings.addresses.domains, settings.addresses.urls, *settings.bad_words.files.values())
    return {path for path in given if path is not None}


def warm_up(settings: CorpusSettings) -> None:
    """Load in this process what the first file would otherwise load."""
    check_lists(settings)
    for kind in {settings.language.identifier, "exact"}:
        identifier(kind)("It was dark.")


def check_lists(settings: CorpusSettings) -> None:
    """Read every list that the settings name, so that a bad one ends the work before it begins."""
    _counter(settings.punkt)
    if settings.addresses.domains is not None:
        _domains(settings.addresses.domains)
    if settings.addresses.urls is not None:
        _address_list(settings.addresses.urls)
    _bad_words(json.dumps(settings.bad_words.files, sort_keys=True))
