"""The files that places name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mixtura.platform.corpus.inputs import input_files
from mixtura.platform.errors import DataError

LIST = (
    "crawl-data/CC-MAIN-2024-22/segments/1/wet/a.warc.wet.gz\ncrawl-data/CC-MAIN-2024-22/segments/1/wet/b.warc.wet.gz\n"
)
LISTED = LIST.split()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("root", ["https://data.commoncrawl.org", "/mirror", "s3://commoncrawl"])
def test_the_lines_of_a_list_of_paths_are_below_a_root(root: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("wet.paths.gz" if packed else "wet.paths")
    path.write_bytes(gzip.compress(LIST.encode()) if packed else LIST.encode())
    assert [file.uri for file in input_files([str(path)], root)] == [f"{root}/{line}" for line in LISTED]


def test_places_are_files_and_patterns_by_their_names_and_each_file_comes_once(tmp_path: Path) -> None:
    for name in ("a.wet", "b.wet", "c.jsonl"):
        (tmp_path / name).touch()
    found = input_files([f"{tmp_path}/c.jsonl", f"{tmp_path}/*.wet", f"{tmp_path}/a.wet"])
    assert [file.uri for file in found] == [f"{tmp_path}/{name}" for name in ("a.wet", "b.wet", "c.jsonl")]


def test_a_place_without_files_and_a_list_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: name the files in it"):
        input_files([str(tmp_path)])
    with pytest.raises(DataError, match=r"no file .*/nothing-\*\.wet"):
        input_files([f"{tmp_path}/nothing-*.wet"])
    (tmp_path / "wet.paths.gz").write_bytes(gzip.compress(LIST.encode())[:20])
    with pytest.raises(DataError, match=r"the list .*wet\.paths\.gz cannot be read"):
        input_files([f"{tmp_path}/wet.paths.gz"])
