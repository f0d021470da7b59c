"""`mixtura corpus report`: sums that add up, a page that hostile text cannot break, and corpora that are not whole."""

from __future__ import annotations

import ast
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from object_store import Store, place, serve_s3

from mixtura.platform.config import ExecutorSection
from mixtura.platform.corpus import rules, stages
from mixtura.platform.corpus.accounts import Account
from mixtura.platform.corpus.inputs import input_files
from mixtura.platform.corpus.reasons import LINES, PAGES
from mixtura.platform.corpus.rules import LINE_REASONS, OF_PAGES
from mixtura.platform.corpus.settings import corpus_settings
from mixtura.platform.errors import DataError, RequestError
from mixtura.platform.orchestration import corpus_report
from mixtura.platform.orchestration.corpus import TITLES, Build, build_corpus
from mixtura.platform.orchestration.corpus_made import Corpus, corpus_at, verify_shards
from mixtura.platform.orchestration.corpus_report import page_place, plain_report, write_corpus_report
from mixtura.platform.orchestration.corpus_tasks import corpus_tasks
from mixtura.platform.orchestration.reporter import SilentReporter

SAID = "The harbour was quiet on evening {}. Nobody saw the boat {} leave the pier. A storm came before morning {}."
EVERYWHERE = "This line stands on every page of the site, as they do."
HOSTILE = (
    "<script>alert(1)</script></pre></div><img src=x onerror=alert(1)> \u202egnp.exe \x1b[31m\x07 \u2066 {{ 7 * 7 }}"
)
GERMAN = "Der Hafen lag am Abend ganz still. Niemand hat das Boot gesehen. Am Morgen kam ein schwerer Sturm auf."


def rows() -> Iterator[dict[str, str]]:
    for number in range(30):
        said = SAID.format(number, number, number)
        yield {"url": f"http://site/{number}", "text": f"{said}\n{EVERYWHERE}\n{HOSTILE}\nmenu"}
    yield {"url": f"http://bracket/{HOSTILE}", "text": f"{HOSTILE} is what stands in this line."}
    yield {"url": "http://german/", "text": GERMAN}
    yield {"url": "http://few/", "text": "There is only one sentence here."}
    yield {"url": "http://once/", "text": SAID.format(0, 0, 0)}
    yield {"text": ""}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two files with hostile text under hostile names, one of which is set aside."""
    folder = tmp_path_factory.mktemp("raw")
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    (folder / "a<b>&\u202e.jsonl").write_text(lines + f'{{"text": "{HOSTILE}\n')
    (folder / "picture<i>\x1b[31m.bin").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    output = folder.parent / "corpus"
    settings = corpus_settings("c4-noblocklist", {"rules": {"fewest_words": 4}})
    with corpus_tasks(ExecutorSection(kind="inline")) as (inline, cpus):
        build_corpus(Build(input_files([f"{folder}/*"]), settings, str(output), inline, cpus, SilentReporter(), 0.04))
    return output


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def corpus(original: Path) -> Corpus:
    return corpus_at(str(original), 200)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "out/report.html"
    write_corpus_report(corpus, path, price=0.04)
    return Page(path.read_text())


def test_each_table_adds_up_to_its_last_row(corpus: Corpus) -> None:
    account = corpus.account
    left_out = {"curly_bracket": 1, "too_few_sentences": 1, "nothing_left": 1, "other_language": 1}
    assert account.pages_left_out == left_out
    for table, column, whole in (
        (corpus_report.record_rows(account), "count", account.records),
        (corpus_report.page_rows(account), "count", account.pages),
        (corpus_report.page_rows(account), "bytes of text", account.page_bytes),
        (corpus_report.line_rows(account), "count", account.lines),
        (corpus_report.language_rows(account), "pages", account.languages.total()),
        (corpus_report.language_rows(account, most=1), "pages", account.languages.total()),
        (corpus_report.split_rows(corpus), "documents", account.pages_out.total()),
        (corpus_report.split_rows(corpus), "bytes of text", account.bytes_out.total()),
    ):
        *parts, last = [row[column] or 0 for row in table]
        assert sum(parts) == last == whole > 0


def test_the_report_has_the_numbers_of_the_manifest(original: Path, corpus: Corpus) -> None:
    manifest = json.loads((original / "manifest.json").read_text())
    plain = plain_report(corpus, price=None)
    assert plain["account"] == manifest["account"]
    assert plain["splits"] == manifest["splits"]
    pages = {row["pages"]: row["count"] for row in plain["pages"]}
    assert {reason: pages[reason] for reason in manifest["account"]["pages_left_out"]} == manifest["account"][
        "pages_left_out"
    ]
    assert plain["settings"] == [{"setting": "rules.fewest_words", "here": "4", "preset": "5"}]


def test_a_price_is_of_the_seconds_of_all_processes(corpus: Corpus) -> None:
    *stages_of, whole = corpus_report.time_rows(corpus, price=3600.0)
    assert whole["cost"] == pytest.approx(sum(corpus.seconds.values()), abs=1e-5)
    assert [row["stage"] for row in stages_of] == [TITLES[stage] for stage in corpus.seconds]
    assert "cost" not in corpus_report.time_rows(corpus)[-1]
    assert corpus.price == 0.04


def test_a_file_that_is_set_aside_has_its_cause(corpus: Corpus, page: Page) -> None:
    [row] = corpus_report.set_aside_rows(corpus)
    assert row["file"].endswith("picture<i>\x1b[31m.bin")
    assert "binary data" in row["cause"]
    assert "picture<i>\\x1b[31m.bin" in page.text


def test_hostile_text_is_shown_and_does_nothing(corpus: Corpus, page: Page) -> None:
    ours = {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "div", "b", "span"),
        *("figure", "svg", "path", "text", "table", "tr", "th", "td", "details", "summary", "pre"),
    }
    assert {tag for tag, _ in page.elements} <= ours
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith(("on", "src", "href"))
    ]
    assert not [one for one in page.text if unicodedata.category(one) in ("Cf", "Cs") or (one < " " and one != "\n")]
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").replace("\x07", "\\x07")
    assert shown.replace("\u2066", "\\u2066") in page.text
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 2


def test_samples_stand_under_their_reasons_with_what_these_mean(corpus: Corpus, page: Page) -> None:
    assert set(corpus.samples["pages"]) == set(corpus.account.pages_left_out)
    for reason, count in corpus.account.pages_left_out.items():
        assert f"{reason} {count}: {PAGES[reason]}" in page.text
    assert GERMAN[:200] in page.text


def test_repeated_and_long_lines_are_shown_with_how_much_they_are(corpus: Corpus, page: Page) -> None:
    assert corpus.samples["most_repeated"][0] == {"count": 30, "text": EVERYWHERE}
    assert f"30{EVERYWHERE}" in page.text
    longest = corpus.samples["longest_lines"][0]
    assert f"{longest['characters']}{longest['begin']}" in page.text


def test_only_the_largest_files_are_shown_and_the_others_counted(original: Path, tmp_path: Path) -> None:
    write_corpus_report(corpus_at(str(original), 1), tmp_path / "page.html", price=None)
    text = Page((tmp_path / "page.html").read_text()).text
    assert "the first 1; 1 more are in accounts.jsonl" in text


def test_every_reason_has_an_explanation(repository: Path) -> None:
    def words(node: ast.AST) -> Iterator[str]:
        returned = (one for one in ast.walk(node) if isinstance(one, ast.Return))
        for constant in (inner for one in returned for inner in ast.walk(one) if isinstance(inner, ast.Constant)):
            if isinstance(constant.value, str) and re.fullmatch("[a-z]+(_[a-z]+)*", constant.value):
                yield constant.value

    of_rules = set(words(ast.parse(Path(rules.__file__).read_text()))) - {"kept"}
    assert {"lorem_ipsum", "policy", "too_few_sentences", "too_few_paragraphs"} <= of_rules
    assert of_rules <= LINES.keys() | PAGES.keys()
    assert set(LINES) == set(LINE_REASONS)
    assert set(PAGES) >= OF_PAGES
    of_stages = {value for name, value in vars(stages).items() if name.isupper() and isinstance(value, str)}
    assert {"same_address", "nearly_equal"} <= of_stages
    assert of_stages - {"und"} <= PAGES.keys()
    page = " ".join((repository / "docs/how-to/corpus.md").read_text().split())
    missing = [name for name, why in {**LINES, **PAGES}.items() if f"| `{name}` | {why} |" not in page]
    assert not missing


Change = Callable[[Path], object]


def changed(name: str, change: Callable[[Any], object]) -> Change:
    """Changes the values of a JSON file."""

    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def one_more_page(manifest: Mapping[str, Any]) -> None:
    manifest["account"]["pages"] += 1


SHARD = "c4-train.00000-of-00001.parquet"
DAMAGES: list[tuple[Change, str]] = [
    (lambda made: (made / "manifest.json").write_text('{"format": '), "manifest.json is damaged"),
    (lambda made: (made / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
    (lambda made: (made / "manifest.json").write_text("[]"), "not that of a corpus"),
    (changed("manifest.json", lambda values: values.pop("splits")), "KeyError: 'splits'"),
    (changed("manifest.json", one_more_page), "its sums miss {'records': -1, 'pages': 1}"),
    (changed("manifest.json", lambda values: values["splits"]["train"].clear()), "shards of train"),
    (lambda made: (made / SHARD).unlink(), f"1 of 1 shards in .*: {SHARD} is missing"),
    (lambda made: (made / SHARD).write_bytes(b"PAR1"), f"{SHARD} has 4 bytes in place of"),
    (lambda made: (made / "accounts.jsonl").unlink(), "accounts.jsonl of the corpus in .* is missing"),
    (lambda made: (made / "accounts.jsonl").write_text(""), "accounts.jsonl of .* 0 files together give other numbers"),
    (lambda made: (made / "samples.json").write_text("{}"), "samples.json of .* its 'records' is no dict"),
    (lambda made: (made / "time.json").write_text("[]"), "time.json of .* is damaged: it is no JSON object"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_damage_is_told_with_its_place(made: Path, damage: Change, said: str) -> None:
    damage(made)
    with pytest.raises(DataError, match=said) as found:
        corpus_at(str(made), 200)
    assert str(made) in str(found.value)
    assert found.value.exit_code == 1


def test_another_byte_in_a_shard_is_found_by_its_digest(made: Path) -> None:
    shard = bytearray((made / SHARD).read_bytes())
    verify_shards(corpus_at(str(made), 200), SilentReporter())
    shard[len(shard) // 2] ^= 1
    (made / SHARD).write_bytes(shard)
    damaged = corpus_at(str(made), 200)
    with pytest.raises(DataError, match=f"{SHARD} .* its bytes are not those that were written"):
        verify_shards(damaged, SilentReporter())


def test_what_is_no_corpus_is_a_bad_request(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (made / ".work").mkdir()
    corpus_at(str(made), 200)  # what a stop behind the manifest leaves
    (made / ".work/plan.json").write_text("{}")
    (made / "manifest.json").unlink()
    for there, said in (
        (tmp_path / "corpsu", "is not there: check its name"),
        (made / SHARD, "is a file: name the corpus's folder"),
        (tmp_path / "empty", "holds no corpus"),
        (made, "is not finished: its `mixtura corpus build` is at work, or was stopped"),
    ):
        with pytest.raises(RequestError, match=said):
            corpus_at(str(there), 200)


@pytest.fixture
def store(original: Path) -> Iterator[Store]:
    with serve_s3({f"bucket/corpus/{path.name}": path.read_bytes() for path in original.iterdir()}) as served:
        yield served


def test_a_corpus_in_a_bucket_is_checked_and_reported_alike(store: Store, corpus: Corpus, tmp_path: Path) -> None:
    there = place(store, "bucket/corpus")
    with pytest.raises(RequestError, match="say with --output FILE.html"):
        page_place(there, None)
    found = corpus_at(there, 200)
    verify_shards(found, SilentReporter())
    mine, theirs = plain_report(corpus, None), plain_report(found, None)
    assert {**theirs, "corpus": ""} == {**mine, "corpus": ""}
    write_corpus_report(found, page_place(there, tmp_path / "page.html"), None)
    assert "s3://bucket/corpus" in (tmp_path / "page.html").read_text()
    del store.files[f"bucket/corpus/{SHARD}"]
    with pytest.raises(DataError, match=f"{SHARD} is missing"):
        corpus_at(there, 200)
    with pytest.raises(RequestError, match="holds no corpus"):
        corpus_at(place(store, "bucket/elsewhere"), 200)


def test_an_account_without_pages_has_a_report() -> None:
    assert [row["count"] for row in corpus_report.page_rows(Account())] == [None, 0, 0, 0]
