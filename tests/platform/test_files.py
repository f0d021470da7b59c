"""Files are whole or absent, and a lock dies with its holder."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from mixtura.platform.errors import ResourceError
from mixtura.platform.files import disk_full_is_an_answer, exclusive_lock, write_bytes_atomically, xxh3_128


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value"
    write_bytes_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full while saving"), disk_full_is_an_answer(tmp_path, "saving"):
        raise OSError(errno.ENOSPC, "no space left")


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mixtura.platform.files import exclusive_lock\n"
        f"with exclusive_lock(Path({str(lock)!r}), 'x'):\n    print('held', flush=True); time.sleep(60)"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={"PYTHONPATH": source})
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == b"held"
    with (
        pytest.raises(ResourceError, match=f"the run is taken: held by process {holder.pid}"),
        exclusive_lock(lock, "the run is taken"),
    ):
        pass
    holder.kill()
    holder.wait()
    with exclusive_lock(lock, "the run is taken"):
        assert lock.read_text().startswith("process ")


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert xxh3_128(tmp_path / "a") == "99aa06d3014798d86001c324468d497f"
