"""Preparation beside the tokenizer alone: how much of SentencePiece's own speed is left when ids have become a cache.

Run by hand on a quiet machine. Both sides have the same texts and cores, and take turns; ratios are of medians.

    python benchmarks/prepare.py                    C4's documents and short GLUE sentences, on one core and on all
    python benchmarks/prepare.py --profile c4       where the time of a whole shard goes

    SentencePiece    one batch call for all texts, `SentencePieceProcessor.encode(texts)`: ids as Python lists
    encode_batch     batches of a million characters; ids in numpy
    whole shard      read the gzipped or plain file, preprocess, tokenise, write and commit the shard

On one core processor time is measured, which other work on the machine does not change; on several, time by the clock.
"""

from __future__ import annotations

import argparse
import cProfile
import gzip
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from mixtura.platform.data.cache import begin
from mixtura.platform.data.task import Example, Task
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.orchestration.shard_job import TOKENISED, ShardJob, prepare_shard
from mixtura.tasks import TaskChoice

DATA = Path(__file__).resolve().parents[2] / "shared/data"
VOCABULARY = "vocab/t5/spiece.model"
ROUNDS = 7
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Case:
    """One shard of a task, with its texts as the tokenizer gets them."""

    name: str
    choice: TaskChoice
    task: Task
    columns: list[list[str]]

    @property
    def megabytes(self) -> float:
        """UTF-8 bytes of all texts."""
        return sum(len(text.encode()) for column in self.columns for text in column) / 1e6


def case(name: str, task: str, root: Path) -> Case:
    """The first shard of a task's training split below a folder."""
    choice = TaskChoice(task, str(root))
    chosen = choice.task()
    made = [one.fields for one in chosen.examples(chosen.shards("train")[0]) if isinstance(one, Example)]
    return Case(name, choice, chosen, [[fields[field] for fields in made] for field in TOKENISED[chosen.kind]])


def cases(data: Path, folder: Path) -> list[Case]:
    """C4's thousand documents ten times in one gzipped file, and the sentences of CoLA twelve times."""
    web, cola = folder / "en", folder / "CoLA"
    web.mkdir()
    cola.mkdir()
    documents = gzip.decompress((data / "web/c4/c4-train.sample-1000.json.gz").read_bytes())
    (web / "c4-train.00000-of-00001.json.gz").write_bytes(gzip.compress(documents * 10, 6))
    (cola / "train.tsv").write_bytes((data / "glue/CoLA/train.tsv").read_bytes() * 12)
    return [case("C4 documents", "c4", folder), case("GLUE sentences", "glue_cola", folder)]


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts of about a million characters at a time."""
    start = characters = 0
    for place, text in enumerate(texts, start=1):
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield texts[start:place]
            start, characters = place, 0
    if start < len(texts):
        yield texts[start:]


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Keep this process to so many of its cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:count])
    yield
    os.sched_setaffinity(0, all_cores)


def measured(sides: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each side, all of them run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            started = clock()
            side()
            seconds[name].append(clock() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def sides_of(one: Case, vocabulary: Path, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """What is compared, as functions to time."""
    alone, ours = SentencePieceProcessor(model_file=str(vocabulary)), Vocabulary(vocabulary)

    def encode_batch() -> None:
        for column in one.columns:
            for part in batches(column):
                ours.encode_batch(part, threads=threads)

    return {
        "SentencePiece": lambda: [alone.encode(column, num_threads=threads) for column in one.columns],
        "encode_batch": encode_batch,
        "read and preprocess": lambda: sum(1 for _ in one.task.examples(one.task.shards("train")[0])),
        "whole shard": whole_shard(one, vocabulary, folder),
    }


def whole_shard(one: Case, vocabulary: Path, folder: Path) -> Callable[[], object]:
    """Prepares the case's shard into a cache below a folder."""
    shard, place = one.task.shards("train")[0], str(folder / one.choice.name)
    begin(place, one.choice.name, one.task.kind, {}, {"train": 1})
    job = asdict(ShardJob(asdict(one.choice), asdict(shard), "train", 0, 1, place, str(vocabulary)))
    return lambda: prepare_shard(job)


def table(data: Path) -> None:
    """Print megabytes of text for each second, and what that is of SentencePiece alone."""
    vocabulary = data / VOCABULARY
    print(f"{'text':<16}{'cores':>6}  {'side':<22}{'MB/s':>8}{'of SentencePiece':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for one in cases(data, Path(folder)):
            for count in sorted({1, len(os.sched_getaffinity(0))}):
                os.environ["OMP_NUM_THREADS"] = str(count)
                with cores(count):
                    clock = time.process_time if count == 1 else time.perf_counter
                    seconds = measured(sides_of(one, vocabulary, Path(folder), count), clock)
                for name, spent in seconds.items():
                    ratio = seconds["SentencePiece"] / spent
                    print(f"{one.name:<16}{count:>6}  {name:<22}{one.megabytes / spent:>8.1f}{ratio:>18.2f}")


def profile(data: Path, name: str) -> None:
    """Print the functions that a whole shard of a case spends its time in."""
    with tempfile.TemporaryDirectory() as folder:
        one = next(one for one in cases(data, Path(folder)) if one.choice.name == name)
        work = whole_shard(one, data / VOCABULARY, Path(folder))
        work()
        profiler = cProfile.Profile()
        profiler.runcall(work)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


def main() -> None:
    """The table, or a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with vocab/t5, web/c4 and glue/CoLA")
    parser.add_argument("--profile", choices=["c4", "glue_cola"])
    given = parser.parse_args()
    if given.profile:
        profile(given.data, given.profile)
    else:
        table(given.data)


if __name__ == "__main__":
    main()
