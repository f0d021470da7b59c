"""Span corruption by the collator of transformers' Flax example: run by `benchmarks/stream.py` in its environment.

The class is loaded from the example's file as it is and called as the example calls it, on a list of rows of equal
length. What it is given is what suits it: the rows, all documents joined and cut, are there before the clock starts,
as NumPy arrays and not the lists that the example has; and of a tokenizer it has the two things that it asks for, since
the real one counts its whole vocabulary at each question, which takes 40 % of the collator's time. It neither mixes,
shuffles nor packs: what it makes of text alone is the least that any stream has to do.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from counting import rate


class Tokenizer:
    """How many ids there are, sentinels among them, and which one is EOS."""

    eos_token_id = 1

    def __len__(self) -> int:
        return 32_100


def example_script(path: str) -> Any:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location("t5_example", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def batches(collator: Any, rows: Any, batch_size: int) -> Iterator[dict[str, Any]]:
    """Collated batches of rows in a random order, over and over; a batch that is not full is left out."""
    random = np.random.default_rng(0)
    for _ in itertools.count():
        order = random.permutation(len(rows))
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            batch = collator([{"input_ids": rows[row]} for row in order[start : start + batch_size]])
            yield {"encoder_input_tokens": batch["input_ids"], "decoder_target_tokens": batch["labels"]}


def main() -> None:
    """Print the rate of one case, which is a JSON file."""
    case = json.loads(Path(sys.argv[1]).read_text())
    script = example_script(case["collator"])
    length, targets_length = script.compute_input_and_target_lengths(case["inputs_length"], 0.15, 3.0)
    tokens = np.load(case["tasks"][0]["file"])["tokens"]
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    np.random.seed(case["seed"])  # noqa: NPY002 (it is this generator that the collator draws from)
    collator = script.FlaxDataCollatorForT5MLM(
        tokenizer=Tokenizer(),
        noise_density=0.15,
        mean_noise_span_length=3.0,
        input_length=case["inputs_length"],
        target_length=targets_length,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    print(json.dumps(rate(batches(collator, rows, case["batch_size"]), case["seconds"], warmup=5)))


if __name__ == "__main__":
    main()
