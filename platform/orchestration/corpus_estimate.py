"""What making a corpus will take, from the beginnings of a few of its files."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.platform.corpus.accounts import Account
from mixtura.platform.corpus.settings import CorpusSettings
from mixtura.platform.corpus.stages import warm_up
from mixtura.platform.errors import DataError
from mixtura.platform.filesystems import Found, last_name, opened
from mixtura.platform.orchestration.corpus import Build, build_corpus
from mixtura.platform.orchestration.corpus_tasks import Job, Lost, MapJobs
from mixtura.platform.orchestration.reporter import SilentReporter, duration

_FILES = 3
_BYTES = 2 << 20
_WHOLE_BYTES = 64 << 20


@dataclass(frozen=True)
class Estimate:
    """Of all files together."""

    files: int
    text_bytes: float
    core_seconds: dict[str, float]
    """By stage."""
    work_bytes: float
    """That lie between the stages at most."""
    out_bytes: float
    """Of text that stays; duplicates across the whole are more than a sample shows."""

    def lines(self, cpus: int, price: float | None) -> Iterator[str]:
        """For people."""
        seconds = sum(self.core_seconds.values())
        yield (
            f"estimate: {self.files:,} files with {_size(self.text_bytes)} of text take {duration(seconds)} of a core, "
            f"{duration(seconds / cpus)} on {cpus} CPUs"
            + (f", and cost {price * seconds / 3600:,.3g}" if price is not None else "")
        )
        yield f"estimate: {_size(self.work_bytes)} lie between the stages at most; at most {_size(self.out_bytes)} stay"


def estimate(files: Sequence[Found], settings: CorpusSettings) -> Estimate | None:
    """Make a corpus of the beginnings of some files, and scale what it took; None if nothing of them can be read.

    A crawl's list says nothing of sizes: its files are taken for as large as those that are looked at.
    """
    sampled = list(dict.fromkeys(files[len(files) * number // _FILES] for number in range(min(_FILES, len(files)))))
    warm_up(settings)
    with tempfile.TemporaryDirectory(prefix="mixtura-estimate-") as folder:
        begins, sizes = zip(*(_begin(file, Path(folder), number) for number, file in enumerate(sampled)), strict=True)
        work = _Measured(Path(folder) / "corpus")
        values = settings.model_copy(update={"work": None})
        build = Build(begins, values, str(work.folder), work.map_jobs, 1, SilentReporter())
        try:
            manifest = build_corpus(build)
        except DataError:
            return None
    account = Account.from_json(manifest["account"])
    usual = sum(sizes) / len(sizes)
    scale = sum(file.size or usual for file in files) / max(sum(file.size for file in begins), 1)
    return Estimate(
        len(files),
        account.page_bytes * scale,
        {stage: seconds * scale for stage, seconds in build.seconds.items()},
        work.most * scale,
        account.bytes_out.total() * scale,
    )


def _begin(file: Found, folder: Path, number: int) -> tuple[Found, int]:
    """The beginning of a file as a file of its own, and the size of the whole."""
    most = _WHOLE_BYTES if ".parquet" in last_name(file.uri) else _BYTES
    path = folder / f"{number}-{last_name(file.uri)}"
    with opened(file.uri) as source:
        path.write_bytes(source.read(most))
        whole = source.seek(0, io.SEEK_END)
    return Found(str(path), path.stat().st_size, ""), whole


@dataclass
class _Measured:
    """Runs jobs here, and sees how much lies in the folder meanwhile."""

    folder: Path
    most: int = 0

    @property
    def map_jobs(self) -> MapJobs:
        """One job after the other."""

        def run(function: Any, jobs: Sequence[Job], _: Lost | None) -> Iterator[Job]:
            for job in jobs:
                yield function(job)
                self.most = max(self.most, sum(_sizes(self.folder)))

        return run


def _sizes(folder: Path) -> Iterator[int]:
    yield from (path.stat().st_size for path in folder.rglob("*"))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"
