"""Files between the stages are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.corpus.work_files import names_below, read, read_range, write, writing


def test_what_a_killed_process_left_half_written_is_not_there(tmp_path: Path) -> None:
    write(str(tmp_path / "done" / "000001.json"), b"{}")
    (tmp_path / "done" / ".000002.json.x8s7").write_bytes(b"{")
    assert names_below(str(tmp_path)) == {"done/000001.json"}
    assert names_below(str(tmp_path / "nothing")) == set()
    assert read(str(tmp_path / "done" / "000002.json")) is None


def test_a_file_is_at_its_place_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), writing(str(place)) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with writing(str(place)) as file:
        file.write(b"whole")
    assert read(str(place)) == b"whole"
    assert read_range(str(place), 1, 3) == b"ho"
    with pytest.raises(EOFError, match="ends 4 bytes too early"):
        read_range(str(place), 3, 9)
