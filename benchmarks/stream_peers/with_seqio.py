"""The stream's work done by SeqIO with T5's preprocessors: run by `benchmarks/stream.py` in SeqIO's environment.

Documents go through T5's own `span_corruption` (chunk, join 128 documents, split, denoise), pairs are used as they are;
then both are trimmed, get EOS, are shuffled in a buffer of 1,000, mixed at the given rates and packed by SeqIO's
converter. Tokens come from tf.data's cache in memory: while the clock runs, no file is read and no record parsed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import t5.data.preprocessors
import tensorflow as tf
from counting import rate

SHUFFLED = 1000


def dataset_of(file: str) -> Any:
    """A tf.data set of the token lists of a file, read once, so that it is in tf.data's own cache in memory."""
    arrays = np.load(file)
    names = [name for name in arrays.files if not name.endswith("_offsets")]
    columns = {name: tf.RaggedTensor.from_row_splits(arrays[name], arrays[f"{name}_offsets"]) for name in names}
    rows = tf.data.Dataset.from_tensor_slices(columns).cache()
    for _ in rows:
        pass
    return rows


def add_task(task: dict[str, Any], vocabulary: Any) -> None:
    """Register one task; the tokens of documents are called targets until they are corrupted."""
    unsupervised, rows = task["kind"] == "unsupervised", dataset_of(task["file"])

    def read(split: str, shuffle_files: bool, seed: int = 0) -> Any:  # noqa: ARG001 (the names that SeqIO asks for)
        return rows.map(lambda row: {"targets": row["tokens"]}) if unsupervised else rows

    feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)
    corruption = [t5.data.preprocessors.span_corruption] if unsupervised else []
    seqio.TaskRegistry.add(
        task["name"],
        source=seqio.FunctionDataSource(read, splits=["train"], num_input_examples={"train": task["rows"]}),
        preprocessors=[*corruption, seqio.preprocessors.append_eos_after_trim],
        output_features={"inputs": feature, "targets": feature},
        shuffle_buffer_size=SHUFFLED,
    )


def main() -> None:
    """Print the rate of one case, which is a JSON file."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    case = json.loads(Path(sys.argv[1]).read_text())
    vocabulary = seqio.SentencePieceVocabulary(case["vocabulary"], extra_ids=100)
    for task in case["tasks"]:
        add_task(task, vocabulary)
    rates = [(task["name"], task["rate"]) for task in case["tasks"]]
    seqio.MixtureRegistry.add("mixture", rates)
    rows = seqio.get_dataset(
        "mixture",
        task_feature_lengths={"inputs": case["inputs_length"], "targets": case["targets_length"]},
        feature_converter=seqio.EncDecFeatureConverter(pack=case["packed"]),
        shuffle=True,
        num_epochs=None,
        seed=case["seed"],
    )
    batches = rows.batch(case["batch_size"], drop_remainder=True).as_numpy_iterator()
    print(json.dumps(rate(batches, case["seconds"], warmup=30)))


if __name__ == "__main__":
    main()
