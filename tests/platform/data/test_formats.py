"""Records from bytes: each trap of real files, by hand."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.containers import DamagedError, plain_bytes
from mixtura.platform.data import formats, json_records, lines
from mixtura.platform.data.formats import Table, records, undamaged
from mixtura.platform.data.lines import raw_lines, text_lines
from mixtura.platform.data.sources import byte_ends
from mixtura.platform.data.task import BadRecord, Row
from mixtura.platform.errors import DataError

SECRET = "a word of the data"


def read(kind: str, data: bytes, name: str = "", table: Table = Table(), lines: Any = None) -> list[Row | BadRecord]:  # noqa: B008
    """The records of a file with this content, decompressed where its name says so."""
    name = name or f"file.{kind}"
    file = io.BufferedReader(io.BytesIO(data))

    def unpacked() -> Iterator[Row | BadRecord]:
        with plain_bytes(file, name) as plain:
            yield from records(kind, plain, name, table, lines)

    found = list(undamaged(unpacked()))
    assert not any(SECRET in record.reason for record in found if isinstance(record, BadRecord))
    return found


def reasons(found: list[Row | BadRecord]) -> list[str | None]:
    return [record.reason if isinstance(record, BadRecord) else None for record in found]


# Tables split on tabs


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "BOM"])
def test_a_table_is_read_whatever_its_line_ends(end: str, last: bool, bom: str) -> None:
    lines = ["sentence\tlabel", 'he said "no\t1', 'so "what" then \t0', "\t1"]
    data = (bom + end.join(lines) + (end if last else "")).encode()
    assert read("tsv", data) == [
        {"sentence": 'he said "no', "label": "1"},
        {"sentence": 'so "what" then ', "label": "0"},
        {"sentence": "", "label": "1"},
    ]


def test_only_line_feeds_end_a_line() -> None:
    text = "one\x0btwo\x0cthree\x1cfour\x85five\u2028six\rseven"
    assert read("tsv", f"a\tb\n{text}\t1\n".encode()) == [{"a": text, "b": "1"}]


def test_a_line_with_another_number_of_fields_is_one_bad_record() -> None:
    data = f"a\tb\tc\n1\t2\t3\n1\t{SECRET}\n1\n\n1\t2\t3\t4\n4\t5\t6\n".encode()
    found = read("tsv", data)
    expected = [
        None,
        "2 fields, the table has 3",
        "1 field, the table has 3",
        "empty line",
        "4 fields, the table has 3",
    ]
    assert reasons(found) == [*expected, None]
    assert found[1] == BadRecord("2 fields, the table has 3", f"1\t{SECRET}")


COLA = (("source", "label", "mark", "sentence"),)


def test_tables_with_and_without_header_are_told_apart() -> None:
    table = Table(header=("sentence",), headerless=(*COLA, ("label", "premise", "hypothesis")))
    without = b"gj04\t1\t\tIt rains.\nbc\t0\t*\tRains it\n"
    assert read("tsv", without, table=table) == [
        {"source": "gj04", "label": "1", "mark": "", "sentence": "It rains."},
        {"source": "bc", "label": "0", "mark": "*", "sentence": "Rains it"},
    ]
    assert read("tsv", b"sentence\tlabel\nIt rains.\t1\n", table=table) == [{"sentence": "It rains.", "label": "1"}]
    assert read("tsv", b"neutral\tA\tB\n", table=table) == [{"label": "neutral", "premise": "A", "hypothesis": "B"}]


def test_a_first_line_that_is_bad_does_not_decide_what_the_table_is() -> None:
    found = read("tsv", b"1\t2\tglued 1\n" + b"1\t2\tx\t1\n" * 3, table=Table(headerless=COLA))
    assert reasons(found) == ["3 fields, the table has 4", None, None, None]


def test_a_table_may_begin_with_any_number_of_bad_lines() -> None:
    found = read("tsv", b"\xff\n" * 100 + b"a\tb\n1\t2\n")
    assert found[100:] == [{"a": "1", "b": "2"}]
    assert set(reasons(found[:100])) == {"not UTF-8"}
    assert reasons(read("csv", b"\xff\n\xff\n")) == ["not UTF-8", "not UTF-8"]


def test_there_are_not_as_many_reasons_as_there_are_numbers_of_fields() -> None:
    found = read("tsv", b"a\tb\n" + b"".join(b"\t" * count + b"\n" for count in range(2, 3000)))
    assert len(set(reasons(found))) == 99
    assert found[-1] == BadRecord("more than 100 fields, the table has 2", "\t" * 300)


def test_a_table_of_no_known_kind_is_refused_with_what_is_known() -> None:
    with pytest.raises(
        DataError, match=r"a table of 2 columns that begins 'x', 'y'; expected a header with 'label', or 4"
    ):
        read("tsv", b"x\ty\n", table=Table(header=("label",), headerless=COLA))


def test_a_header_that_names_a_column_twice_is_refused() -> None:
    with pytest.raises(DataError, match="two columns 'a'"):
        read("tsv", b"a\ta\n1\t2\n")


def test_bytes_that_are_no_text_are_one_bad_record() -> None:
    found = read("tsv", b"a\tb\n1\t2\n\xff\xfe\t3\n4\t5\n")
    assert reasons(found) == [None, "not UTF-8", None]


def test_an_overlong_line_is_one_bad_record_and_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, formats):
        monkeypatch.setattr(module, "LINE_BYTES", 1000)
    long = b"y" * 5000
    assert reasons(read("tsv", b"a\tb\n1\t2\n" + long + b"\t1\n3\t4\n")) == [None, "line of more than 16 MiB", None]
    assert reasons(read("csv", b"a,b\n1,2\n" + long + b",1\n3,4\n")) == [None, "line of more than 16 MiB", None]
    assert reasons(read("jsonl", b'{"a":1}\n"' + long + b'"\n{"a":1}\n')) == [None, "line of more than 16 MiB", None]
    assert reasons(read("text", b"a\n" + long + b"\nb\nc", lines=pairs)) == ["line of more than 16 MiB", None]


# Tables with quotes


def test_quoted_fields_may_hold_commas_quotes_and_line_ends() -> None:
    data = '\ufefftext,label\r\n"a, ""b""\r\nc\nd",1\r\ne,0\r\n"ü",2'.encode()
    assert read("csv", data) == [
        {"text": 'a, "b"\r\nc\nd', "label": "1"},
        {"text": "e", "label": "0"},
        {"text": "ü", "label": "2"},
    ]


def test_quotes_that_do_not_fit_cost_one_line() -> None:
    found = read("csv", f'a,b\n1,2\n"{SECRET},3\n4,5\n"x"y,6\n\n7,8,9\n\xff,1\n'.encode("latin-1"))
    misfit = "quotes that do not fit"
    expected = [None, misfit, None, misfit, "empty line", "3 fields, the table has 2", "not UTF-8"]
    assert reasons(found) == expected


def test_a_carriage_return_outside_quotes_costs_its_line() -> None:
    assert reasons(read("csv", b"a,b\n1,x\ry\n3,4\n")) == ["a carriage return outside quotes", None]


def test_a_csv_record_that_does_not_end_costs_one_line_and_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LINE_BYTES", 1000)
    found = read("csv", b'a\n"x","\n' + b'","\n' * 400 + b'"\n1\n')
    assert reasons(found)[0] == "record of more than 16 MiB"
    assert found[-1] == {"a": "1"}
    good = b"".join(b"%d\n" % number for number in range(1000))
    assert read("csv", b'a\n"not closed\n' + good)[1:] == [{"a": str(number)} for number in range(1000)]


def test_quotes_that_are_never_closed_do_not_cost_more_time_than_a_few_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "LINE_BYTES", 1 << 20)
    found = read("csv", b"a,b\n" + b'x","\n' * 40_000 + b"1,2\n")  # 800 million lines, if all were read again
    assert len(found) == 40_001
    assert set(reasons(found[:-1])) == {"quotes that do not fit"}
    assert found[-1] == {"a": "1", "b": "2"}


def test_a_field_longer_than_the_csv_modules_own_limit_is_read() -> None:
    text = "x" * 200_000
    assert read("csv", f'a\n"{text}"\n'.encode()) == [{"a": text}]


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_what_the_csv_module_writes_is_read(rows: list[list[str]]) -> None:
    import csv

    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    assert read("csv", buffer.getvalue().encode()) == [{"a": a, "b": b} for a, b in rows]


# JSON


def test_json_lines_that_cannot_be_read_are_bad_records() -> None:
    lines = [
        b'{"a": 1}',
        b'{"a": "' + SECRET.encode(),
        b'["x"]',
        b"",
        b'{"a": "\xff"}',
        b'{"a": "\\ud83d"}',
        b'{"a": 2}',
    ]
    found = read("jsonl", b"\xef\xbb\xbf" + b"\r\n".join(lines))
    expected = [None, "not JSON", "not an object", "empty line", "not UTF-8", "half of a surrogate pair", None]
    assert reasons(found) == expected
    assert read("jsonl", b'{"a": "\\ud83d\\ude00", "b": [1.5, null, true]}') == [{"a": "😀", "b": [1.5, None, True]}]


def test_nesting_has_a_limit_that_is_the_same_wherever_the_reader_is_called() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    def called_from_deep_below(calls: int) -> list[str | None]:
        if calls:
            return called_from_deep_below(calls - 1)
        lines = [nested(100), nested(101), nested(850), nested(100_000), b'{"a": ' + b"[" * 850, b'{"a": 1}']
        return reasons(read("jsonl", b"\n".join(lines)))

    deep = "nested more than 100 deep"
    assert called_from_deep_below(0) == called_from_deep_below(500) == [None, deep, deep, deep, deep, None]
    assert reasons(read("json", b"[" + nested(850) + b', {"a": 1}]')) == [deep, None]


def test_a_key_twice_in_an_object_is_a_bad_record() -> None:
    twice = b'{"a": {"text": "one", "text": "two"}}'
    assert reasons(read("jsonl", twice + b'\n{"a": 1}')) == ["an object with a key twice", None]
    assert reasons(read("json", b"[" + twice + b', {"a": 1}]')) == ["an object with a key twice", None]


def test_numbers_of_json_may_be_of_any_size_but_not_of_any_length() -> None:
    found = read("jsonl", b'{"a": 1e999}\n{"a": %s}\n{"a": -Infinity}\n{"a": 1}' % (b"9" * 1_000_000))
    assert found[0] == {"a": float("inf")}
    assert reasons(found) == [None, "a number of too many digits", None, None]


@pytest.mark.parametrize(
    "bad", [b"\xff", b'{"a": "x', b'{"a": 1', b"nothing", b"[" * 200_000, b'["a"]', b'{"a": 7, "a": 8}', b"", b'"a"']
)
def test_json_lines_under_json_may_begin_with_any_number_of_bad_ones(bad: bytes) -> None:
    for count in (1, 2, 19, 25):
        found = read("json", b"\n".join([*[bad] * count, b'{"a": 1}', b'{"a": 2}']))
        assert None not in reasons(found[:count])
        assert found[count:] == [{"a": 1}, {"a": 2}]


def test_a_long_first_line_under_json_is_a_document_only_if_it_is_one_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, json_records):
        monkeypatch.setattr(module, "LINE_BYTES", 1000)
    document = json.dumps({"version": "1.1", "data": [{"a": number} for number in range(500)]}).encode()
    assert len(read("json", document + b"\n \n")) == 500
    for long in (document, b'{"a": "' + b"x" * 5000 + b'"}'):
        assert reasons(read("json", long + b'\n{"a": 1}\n')) == ["line of more than 16 MiB", None]
    assert reasons(read("json", b'{"a": "' + b"x" * 5000)) == ["line of more than 16 MiB"]


ONE, TWO = {"a": 1}, {"a": "ü\n"}


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n{"a": "\\u00fc\\n"}\n',
        b'{"a": 1}\n{"a": "\\u00fc\\n"}',
        json.dumps([ONE, TWO]).encode(),
        json.dumps([ONE, TWO], indent=1).encode(),
        json.dumps({"0": ONE, "1": TWO}, ensure_ascii=False).encode("utf-8-sig"),
        json.dumps({"0": ONE, "1": TWO}, indent=2).encode() + b"\n\n",
        json.dumps({"version": "1.1", "data": [ONE, TWO]}).encode(),
        json.dumps({"data": [ONE, TWO], "version": "1.1"}, indent=4).encode(),
        b'[\n{"a": 1},\n{"a": "\\u00fc\\n"}\n]\n',
    ],
)
def test_json_is_read_in_each_of_its_layouts(data: bytes) -> None:
    assert read("json", data) == [ONE, TWO]
    assert read("json", gzip.compress(data), "file.json.gz") == [ONE, TWO]


def test_values_of_a_keyed_object_keep_their_order() -> None:
    assert read("json", json.dumps({"10": ONE, "9": TWO}).encode()) == [ONE, TWO]


def test_json_lines_under_json_are_told_from_a_document_when_one_of_the_first_two_is_bad() -> None:
    assert reasons(read("json", b'{"a": 1\n{"a": 2}\n{"a": 3}')) == ["not JSON", None, None]
    assert reasons(read("json", b'{"a": 1}\n{"a": 2\n{"a": 3}')) == [None, "not JSON", None]
    assert reasons(read("json", b'\n{"a": 2}\n{"a": 3}')) == ["empty line", None, None]


def test_a_single_object_is_one_record_and_other_elements_are_bad() -> None:
    assert read("json", b'{"a": 1}') == [ONE]
    assert reasons(read("json", b'[{"a": 1}, 7, {"a": "\\udc00"}]')) == [
        None,
        "not an object",
        "half of a surrogate pair",
    ]


def test_what_is_no_json_is_refused_with_the_place() -> None:
    with pytest.raises(
        DataError, match=r"x\.json is neither JSON lines nor one document \(line 3, column 1\); expected"
    ):
        read("json", b'[{"a": 1},\n{"a": 2},\n', "x.json")
    with pytest.raises(DataError, match="an empty file"):
        read("json", b"")


# Text


def pairs(lines: Any) -> Iterator[Row | BadRecord]:
    """A task's own reader: two lines make a record."""
    for line in lines:
        other = next(iter(lines), None)
        yield {"a": line, "b": other} if other is not None else BadRecord("a line alone", line)


def test_a_line_of_text_is_a_record() -> None:
    assert read("text", "\ufeffeins\r\n\nzwei\xa0\u2028drei".encode()) == [
        {"text": "eins"},
        {"text": ""},
        {"text": "zwei\xa0\u2028drei"},
    ]


def test_a_tasks_own_reader_gets_all_lines_and_bad_ones_are_found_in_its_records() -> None:
    found = read("text", b"1\r\n2\r\n\xff\n4\n5", lines=pairs)
    assert found[0] == {"a": "1", "b": "2"}
    assert reasons(found) == [None, "not UTF-8", "a line alone"]


# Line-aligned files


def aligned(*sides: bytes) -> list[Row | BadRecord]:
    files = [io.BufferedReader(io.BytesIO(side)) for side in sides]
    return list(formats.read_aligned(files, ["train.en", "train.de"], ["en", "de"]))


def test_lines_of_aligned_files_are_paired() -> None:
    found = aligned(b"\xef\xbb\xbfone\ntwo\xe2\x80\xa8 \n\nfour\n\xff", b"eins\r\nzwei\r\ndrei\r\n \r\nx\r\n")
    assert found[:2] == [{"en": "one", "de": "eins"}, {"en": "two\u2028 ", "de": "zwei"}]
    assert reasons(found[2:]) == ["empty line", "empty line", "not UTF-8"]


def test_aligned_files_of_different_length_are_refused_with_both() -> None:
    with pytest.raises(DataError, match=r"train\.en has 3 lines, train\.de has 2 lines"):
        aligned(b"1\n2\n3\n", b"1\n2\n")


# Parquet


def parquet(rows: list[Row], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


NESTED = [{"text": f"row {i}", "spans": [{"start": i, "words": ["a", "b"][: i % 3]}], "label": i} for i in range(10)]


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "gzipped"])
def test_parquet_gives_rows_in_its_own_types(wrapped: bool) -> None:
    data = parquet(NESTED, row_group_size=3)
    assert (
        read("parquet", gzip.compress(data) if wrapped else data, "x.parquet.gz" if wrapped else "x.parquet") == NESTED
    )


def test_a_damaged_row_group_is_one_bad_record_among_good_groups() -> None:
    rows = [{"text": f"{random.Random(i).random()}"} for i in range(3000)]
    data = bytearray(parquet(rows, row_group_size=1000, compression="none", write_page_checksum=True))
    column = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0)
    middle = column.dictionary_page_offset + column.total_compressed_size // 2
    data[middle] ^= 1
    found = read("parquet", bytes(data))
    assert [record for record in found if isinstance(record, dict)] == rows[:1000] + rows[2000:]
    assert found[1000] == BadRecord("damaged row group", "row group 1: 1000 of 1000 rows cannot be read")


def test_a_value_that_python_cannot_hold_costs_its_row() -> None:
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    times = pa.array([0, 0, -(1 << 62)], pa.timestamp("ms"))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": text, "time": times}), buffer)
    found = read("parquet", buffer.getvalue())
    assert reasons(found) == [None, "not UTF-8", "a value that Python cannot hold"]
    assert isinstance(found[0], dict)
    assert found[0]["text"] == "a"


# Compressed files


def noise(count: int) -> bytes:
    generator = random.Random(1)
    return b"a\tb\n" + b"".join(b"%d\t%d\n" % (i, generator.getrandbits(200)) for i in range(count))


def test_a_gzip_file_that_ends_early_gives_what_was_readable_and_then_one_bad_record() -> None:
    data = noise(3000)
    found = read("tsv", gzip.compress(data)[:50_000], "x.tsv.gz")
    whole = read("tsv", data)
    assert 1000 < len(found) < 3000
    assert found[:-1] == whole[: len(found) - 1]
    assert found[-1] == BadRecord("the compressed file ends early", "")


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "json", "text"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.4, 0.9])
def test_whole_members_behind_one_that_was_cut_off_are_read(kind: str, kept: float) -> None:
    generator = random.Random(2)
    made = [f"{number},{generator.getrandbits(300)}" for number in range(6000)]
    if kind in ("jsonl", "json"):
        made = [json.dumps({"a": text}) for text in made]
    parts = [
        ("a,b\n" if kind == "csv" and not at else "") + "\n".join(made[at : at + 2000]) + "\n" for at in (0, 2000, 4000)
    ]
    parts[0] = ("a\n" if kind == "tsv" else "") + parts[0]
    packed = [gzip.compress(part.encode()) for part in parts]
    cut = packed[1][: max(1, int(len(packed[1]) * kept))]
    found = read(kind, packed[0] + cut + packed[2], f"x.{kind}.gz")
    whole = read(kind, "".join(parts).encode())
    bad = reasons(found).index("the compressed file ends early")
    assert found[:bad] == whole[:bad]
    assert found[bad + 1 :] == whole[4000:]
    assert (bad > 2000) == (kept > 0.01)
    alone = read(kind, packed[0] + packed[1] + packed[2][: int(len(packed[2]) * kept)], f"x.{kind}.gz")
    assert alone[:4000] == whole[:4000]
    assert reasons(alone[4000:]).count("the compressed file ends early") == (kept > 0)


def test_members_behind_a_corrupt_one_are_read_and_no_line_before_the_damage_is_lost() -> None:
    data = noise(3000)
    packed = bytearray(gzip.compress(data, 0))  # blocks of up to 65,535 bytes as they are, each with its length twice
    second = packed.index(b"\xff\xff\0\0", 20)
    packed[second] ^= 1
    found = read("tsv", bytes(packed) + gzip.compress(b"1\t2\n"), "x.tsv.gz")
    before = data[: second - 16].count(b"\n") - 1
    assert found == [*read("tsv", data)[:before], BadRecord("corrupt gzip data", ""), {"a": "1", "b": "2"}]


def test_what_looks_like_the_head_of_a_member_inside_one_is_part_of_it() -> None:
    head = gzip.compress(b"", mtime=0)[:10]
    data = b"\n".join(bytes([n % 200 + 30]) + head + b"x" for n in range(4000))
    with plain_bytes(io.BufferedReader(io.BytesIO(gzip.compress(data, 0))), "x.gz") as plain:
        assert plain.read() == data


def test_padding_between_members_is_no_damage_and_other_bytes_are() -> None:
    one, two = gzip.compress(b"1\n"), gzip.compress(b"2\n")
    assert read("text", one + bytes(600) + two + bytes(3), "x.txt.gz") == [{"text": "1"}, {"text": "2"}]
    assert reasons(read("text", one + b"?" * 70_000 + two, "x.txt.gz")) == [None, "corrupt gzip data", None]


def test_lines_that_belong_together_end_where_one_file_is_damaged() -> None:
    text = "".join(f"{random.Random(n).random()}\n" for n in range(2000)).encode()
    damaged = gzip.compress(text)[:5000] + gzip.compress(text)
    with plain_bytes(io.BufferedReader(io.BytesIO(damaged)), "x.gz") as left:
        files = [left, io.BufferedReader(io.BytesIO(text))]
        found = list(undamaged(formats.read_aligned(files, ["x.gz", "y"], ["en", "de"])))
    assert 100 < len(found) < 1900
    assert all(isinstance(record, dict) and record["en"] == record["de"] for record in found[:-1])
    assert found[-1] == BadRecord("the compressed file ends early", "")


def test_corrupt_gzip_data_ends_with_one_bad_record() -> None:
    data = noise(3000)
    packed = bytearray(gzip.compress(data))
    packed[-6] ^= 1
    assert read("tsv", bytes(packed), "x.tsv.gz") == [*read("tsv", data), BadRecord("corrupt gzip data", "")]
    packed[50_000:50_020] = b"\xff" * 20
    found = read("tsv", bytes(packed), "x.tsv.gz")
    assert len(found) > 500
    assert reasons(found)[-1] == "corrupt gzip data"


@pytest.mark.parametrize(
    ("kind", "lines"), [("csv", None), ("jsonl", None), ("json", None), ("text", None), ("text", pairs)]
)
def test_no_format_takes_the_last_half_line_of_damaged_data_for_a_record(kind: str, lines: Any) -> None:
    text = {"csv": b"a\n" + b"xyz\n" * 50, "text": b"xyz\n" * 50}.get(kind, b'{"a": "xyz"}\n' * 50)
    packed = gzip.compress(text)[:-12]
    found = read(kind, packed, "x.gz", lines=lines)
    assert reasons(found)[-1] == "the compressed file ends early"
    assert not any(reasons(found)[:-1])


def test_several_gzip_members_are_one_file() -> None:
    assert read("tsv", gzip.compress(b"a\tb\n1\t2\n") + gzip.compress(b"3\t4\n"), "x.tsv.gz") == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]


def test_a_damaged_member_of_a_zip_archive_is_told(tmp_path: Any) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.tsv", noise(2000))
    data = bytearray(path.read_bytes())
    data[30_000] ^= 255
    with (
        plain_bytes(io.BufferedReader(io.BytesIO(bytes(data))), "x.zip", "train.tsv") as plain,
        pytest.raises(DamagedError),
    ):
        plain.read()


# Files that are something else


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>\n"


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("data", "found"), [(PAGE, "an HTML page"), (LFS, "a Git LFS pointer"), (gzip.compress(b"x"), "gzip data")]
)
def test_a_file_that_is_something_else_is_refused(kind: str, data: bytes, found: str) -> None:
    with pytest.raises(DataError, match=rf"(?i)x\.{kind} is {found}.*; expected {kind}") as error:
        read(kind, data, f"x.{kind}", table=Table(headerless=(("text",),)))
    assert "Sign in" not in str(error.value)


def test_a_parquet_file_that_is_cut_off_is_refused_as_such() -> None:
    with pytest.raises(DataError, match="a Parquet file that is cut off or damaged"):
        read("parquet", parquet(NESTED)[:-20])


def test_a_page_under_the_name_of_a_gzip_file_is_refused() -> None:
    with pytest.raises(DataError, match="an HTML page; expected gzip data"):
        read("tsv", PAGE, "x.tsv.gz")


# Ranges of bytes


Reader = Callable[[io.BufferedReader, int, int], Iterator[Any]]
PIECES = st.lists(st.sampled_from([b"a", b"bc\t1", b"\n", b"\r\n", b"\t", b'"', b"\xc3\xbc", b"\xff", b"\xef\xbb\xbf"]))


def in_ranges(data: bytes, size: int, reader: Reader) -> list[Any]:
    ends = byte_ends(len(data), size)
    found = []
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        found += list(reader(io.BufferedReader(io.BytesIO(data), 16), start, end))
    return found


@given(PIECES, st.integers(1, 20))
def test_ranges_of_bytes_give_each_line_once_and_in_order(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    whole = list(raw_lines(io.BufferedReader(io.BytesIO(data))))
    assert b"".join(line for line in whole if isinstance(line, bytes)) == data
    assert in_ranges(data, size, raw_lines) == whole
    texts = in_ranges(data, size, formats.read_text)
    assert texts == read("text", data)


@given(PIECES, st.integers(1, 40), st.sampled_from([Table(), Table(headerless=(("a", "b"), ("a",)))]))
def test_ranges_of_a_table_give_its_rows_once_and_in_order(pieces: list[bytes], size: int, table: Table) -> None:
    data = b"bc\t1\n" + b"".join(pieces)
    try:
        whole = read("tsv", data, table=table)
    except DataError:
        return
    found = in_ranges(data, size, lambda file, start, end: formats.read_tsv(file, "x", table, start, end))
    assert found == whole


def test_text_lines_keep_what_is_not_a_line_end() -> None:
    assert list(text_lines([b" a \r\n", b"b\r\r\n", b"c"])) == [" a ", "b\r", "c"]
