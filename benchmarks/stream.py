r"""The mixture stream beside its peers, one core each: from prepared tokens to the features of batches.

Run by hand on a quiet machine. The text is tokenised once, by our own `prepare`; the peers get the very same token
lists. Every number comes from a process of its own, pinned to one core; the sides take turns, so that a machine whose
speed drifts moves all of them, and the ratios are of medians. All make rows of 512/114 in batches of 128, text and
pairs at the same rates.

    python benchmarks/stream.py                            our side alone
    python benchmarks/stream.py --peers DIR --json FILE    the whole table, about 15 minutes
    python benchmarks/stream.py --profile --cases mixture  where the time goes
    python benchmarks/stream.py --blocks                   blocks 0, 10^6 and 10^9: as long as each other
    python benchmarks/stream.py --resume                   first batch at step 0 and at step 500,000: likewise

The peers are SeqIO with T5's preprocessors on tf.data, and the collator for T5's span corruption in the Flax examples
of transformers (called as it is; it neither mixes, shuffles nor packs, so it has text alone). DIR holds an environment
for each, and the example's file, which is in the source repository of transformers 4 and not in its package:

    python3.11 -m venv DIR/seqio
    DIR/seqio/bin/pip install tensorflow==2.19.0 'protobuf<6' tensorflow-metadata==1.16.1 \
        'googleapis-common-protos<1.70' sentencepiece==0.2.0 tensorflow-datasets==4.9.10 clu==0.0.12 editdistance \
        jax==0.10.2 pyglove absl-py packaging babel gin-config immutabledict nltk pandas rouge-score sacrebleu \
        scikit-learn scipy six
    DIR/seqio/bin/pip install --no-deps tensorflow-text==2.19.0 seqio==0.0.20 t5==0.9.4

    python3.11 -m venv DIR/collator
    DIR/collator/bin/pip install transformers==4.46.3 'numpy<2.3' jax==0.10.2 flax==0.12.8 optax==0.2.8 \
        datasets==5.0.1 sentencepiece==0.2.3 protobuf tqdm
    DIR/run_t5_mlm_flax.py, or --collator FILE: examples/flax/language-modeling/run_t5_mlm_flax.py of transformers 4.41

`tensorflow-cpu` does not do: `tensorflow-text` needs symbols that only `tensorflow` has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mixtura.platform import config
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.prepare import Prepared, map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.workspace import workspace

HERE = Path(__file__).resolve().parent
SIDES = HERE / "stream_peers"
DATA = HERE.parents[1] / "shared/data"
INPUTS_LENGTH, TARGETS_LENGTH, BATCH_SIZE = 512, 114, 128
C4_SIZE = 364_868_892
"""C4 counts for its published size; the data here is a sample that every side passes over again and again. The other
tasks count for what the data has of them."""

QUIET = 0.95
"""Share of its core that a process must have had for its number to count."""

SHORT = ("glue_sst2", "glue_rte", "glue_mnli")


@dataclass(frozen=True)
class Case:
    """What is measured on every side that can do it."""

    title: str
    tasks: tuple[str, ...]
    sides: tuple[str, ...]
    packing: str = "best_fit"


CASES = {
    "c4": Case("C4", ("c4",), ("ours", "SeqIO", "collator")),
    "c4_unpacked": Case("C4, one example a row", ("c4",), ("ours", "SeqIO", "collator"), packing="none"),
    "mixture": Case("C4 + SST-2 + RTE + MNLI", ("c4", *SHORT), ("ours", "SeqIO")),
    "short": Case("SST-2 + RTE + MNLI", SHORT, ("ours", "SeqIO")),
}


def recipe(case: Case, data: Path, vocabulary: Path) -> config.Config:
    """Rates as in the paper's larger mixtures: T = 2 and a cap of 2^21."""
    tasks = {name: {"size": C4_SIZE} if name == "c4" else {} for name in case.tasks}
    values = {
        "vocabulary": {"path": str(vocabulary)},
        "mixture": {"tasks": tasks, "sizes": "counted", "temperature": 2, "maximum": 2**21},
        "data": {
            "root": str(data),
            "inputs_length": INPUTS_LENGTH,
            "targets_length": TARGETS_LENGTH,
            "packing": case.packing,
        },
        "training": {"steps": 1, "global_batch_size": BATCH_SIZE},
    }
    return config.validated(values, where="the benchmark")


def token_lists(cache: Path, file: Path) -> dict[str, Any]:
    """Write the training tokens of a cache as flat arrays with offsets, and say what they are."""
    shards = [pa.ipc.open_file(path).read_all() for path in sorted(cache.glob("train-*.arrow"))]
    columns = ["tokens"] if "tokens" in shards[0].column_names else ["inputs", "targets"]
    arrays: dict[str, Any] = {}
    for column in columns:
        chunks = [chunk for shard in shards for chunk in shard.column(column).chunks]
        rows = Ragged.concatenate([Ragged.from_arrow(chunk) for chunk in chunks])
        arrays |= {column: rows.values, f"{column}_offsets": rows.offsets}
    np.savez(file, **arrays)
    kind = "unsupervised" if columns == ["tokens"] else "supervised"
    return {"file": str(file), "kind": kind, "rows": sum(len(shard) for shard in shards)}


def case_file(name: str, given: argparse.Namespace, folder: Path) -> Path:
    """Everything that a side needs to know of a case, in a file; what it prepares is kept for other cases."""
    case = CASES[name]
    this = recipe(case, given.data, given.vocabulary)
    prepared: Prepared = prepare(this, workspace(str(folder / "runs")), map_inline, SilentReporter())
    spec = stream_spec(this, prepared)
    tasks = []
    for task in spec.tasks:
        lists = token_lists(Path(task.cache), folder / f"{task.name}.npz")
        tasks.append({"name": task.name, "rate": task.rate_bits / 2**64, **lists})
    values = {
        "tasks": tasks,
        "inputs_length": INPUTS_LENGTH,
        "targets_length": TARGETS_LENGTH,
        "batch_size": BATCH_SIZE,
        "packed": case.packing != "none",
        "vocabulary": str(given.vocabulary),
        "collator": str(given.collator),
        "seconds": given.seconds,
        "seed": spec.seed,
        "spec": spec.to_dict(),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def pinned(core: int, python: str | Path, *arguments: str | Path) -> Any:
    """What a process on one core answers, the last line that it prints."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **dict.fromkeys(threads, "1"), **quiet}
    if str(python) != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = ["taskset", "-c", str(core), str(python), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(given: argparse.Namespace, files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Every side of every case once, and that `repeats` times over."""
    sides: dict[str, tuple[str | Path, ...]] = {"ours": (sys.executable, SIDES / "ours.py", "rate")}
    if given.peers:
        sides["SeqIO"] = given.peers / "seqio/bin/python", SIDES / "with_seqio.py"
        sides["collator"] = given.peers / "collator/bin/python", SIDES / "with_collator.py"
    runs = []
    for repeat in range(given.repeats):
        for name, file in files.items():
            for side in [side for side in CASES[name].sides if side in sides]:
                python, *arguments = sides[side]
                answer = pinned(given.core, python, *arguments, file)
                runs.append({"case": name, "side": side, "repeat": repeat, **answer})
                print(
                    f"{repeat + 1}/{given.repeats} {name} {side}: {answer['tokens_per_s']:,.0f} encoder tokens/s, "
                    f"{answer['core']:.0%} of the core",
                    file=sys.stderr,
                )
    return runs


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 0) -> str:
    """Median with least and most.

    >>> spread([3.0, 1.0, 2.0])
    '2 [1 .. 3]'
    """
    middle, least, most = (value * scale for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:,.{digits}f} [{least:,.{digits}f} .. {most:,.{digits}f}]"


def print_table(runs: Sequence[Mapping[str, Any]]) -> None:
    """One line for each side of each case; ratios are ours over theirs, tokens and examples."""

    def column(case: str, side: str, name: str) -> list[float]:
        return [run[name] for run in runs if (run["case"], run["side"]) == (case, side)]

    print(
        f"{'case':<26}{'side':<10}{'M encoder tokens/s':>24}{'examples/s':>30}"
        f"{'encoder fill':>14}{'decoder fill':>14}{'ours/tokens':>13}{'/examples':>11}"
    )
    for case, side in dict.fromkeys((run["case"], run["side"]) for run in runs):
        names = ("tokens_per_s", "examples_per_s")
        of_side = {name: column(case, side, name) for name in (*names, "encoder_fill", "decoder_fill")}
        tokens, examples = (
            statistics.median(column(case, "ours", name)) / statistics.median(of_side[name]) for name in names
        )
        fills = [statistics.median(of_side[name]) for name in ("encoder_fill", "decoder_fill")]
        print(
            f"{CASES[case].title:<26}{side:<10}{spread(of_side['tokens_per_s'], 1e-6, 3):>24}"
            f"{spread(of_side['examples_per_s']):>30}{fills[0]:>14.3f}{fills[1]:>14.3f}{tokens:>13.2f}{examples:>11.2f}"
        )
    if disturbed := [run for run in runs if run["core"] < QUIET]:
        print(
            f"{len(disturbed)} of {len(runs)} processes had less than {QUIET:.0%} of their core: "
            "something else ran on it, and these numbers are not to be kept"
        )


def print_profile(title: str, found: Mapping[str, Any]) -> None:
    """The functions with most time of their own."""
    print(f"{title}: {found['batches']} batches in {found['seconds']:.2f} s under the profiler")
    print(f"{'own':>8}{'share':>8}{'with callees':>14}{'calls':>10}  function")
    for row in found["functions"][:15]:
        share = row["own_s"] / found["seconds"]
        print(
            f"{row['own_s']:>7.2f}s{share:>8.1%}{row['with_callees_s']:>13.2f}s{row['calls']:>10,}  {row['function']}"
        )


def print_seconds(title: str, what: str, found: Mapping[str, Sequence[float]]) -> None:
    """Milliseconds by the number of a block or a step, and how many times the first one's."""
    print(f"{title}: ms to {what}")
    first = statistics.median(next(iter(found.values())))
    for number, seconds in found.items():
        print(f"{int(number):>16,}{spread(seconds, 1e3, 1):>28}{statistics.median(seconds) / first:>8.2f}")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="The mixture stream beside its peers, one core each.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with c4 and glue below it")
    parser.add_argument("--vocabulary", type=Path, help="spiece.model; DATA/vocab/t5/spiece.model if not given")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; our side alone if not given")
    parser.add_argument("--collator", type=Path, help="PEERS/run_t5_mlm_flax.py if not given")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="that the clock runs for each number")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to keep what is prepared; a temporary one if not given")
    parser.add_argument("--json", type=Path, help="file for the numbers as they came")
    parser.add_argument("--profile", action="store_true", help="our functions by time, in place of the table")
    parser.add_argument("--blocks", nargs="*", type=int, metavar="N", help="time to build these blocks, likewise")
    parser.add_argument("--resume", nargs="*", type=int, metavar="STEP", help="time to the first batch, likewise")
    given = parser.parse_args()
    given.vocabulary = (given.vocabulary or given.data / "vocab/t5/spiece.model").resolve()
    if not given.vocabulary.is_file():
        parser.error(f"there is no {given.vocabulary}: give --data and --vocabulary")
    if given.peers:  # not resolved: an environment's Python is a link out of it
        given.peers = given.peers.absolute()
    given.collator = given.collator or (given.peers and given.peers / "run_t5_mlm_flax.py")
    given.data = given.data.resolve()
    return given


def main() -> None:
    """Prepare, measure in processes, print."""
    given = arguments()
    found: Any = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.work or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: case_file(name, given, folder) for name in given.cases}
        ours = SIDES / "ours.py"
        for name, file in files.items():
            title = CASES[name].title
            if given.profile:
                found[f"profile {name}"] = answer = pinned(given.core, sys.executable, ours, "profile", file)
                print_profile(title, answer)
            if given.blocks is not None:
                numbers = map(str, given.blocks or (0, 10**6, 10**9))
                found[f"blocks {name}"] = answer = pinned(given.core, sys.executable, ours, "blocks", file, *numbers)
                print_seconds(title, "build a block, by its number", answer)
            if given.resume is not None:
                numbers = map(str, given.resume or (0, 500_000))
                found[f"resume {name}"] = answer = pinned(given.core, sys.executable, ours, "resume", file, *numbers)
                print_seconds(title, "the first batch, by its step", answer)
        if not found:
            found = measure(given, files)
            print_table(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
