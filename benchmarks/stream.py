"""The mixture stream on one core: blocks and features for each second, beside the tokenizer that feeds it.

Run by hand on a quiet machine: `python benchmarks/stream.py`. The peer is SentencePiece's own batch call on the text of
the same task: the stream should never be what a run waits for.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mixtura.platform import config
from mixtura.platform.data.lanes import RankStream
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.data.task import Example
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.workspace import workspace
from mixtura.tasks import get_task

BATCHES = 200


def main() -> None:
    """Print tokens for each second of both, and the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = config.load("quickstart", ["training.global_batch_size=120", "data.lanes=6"])
        prepared = prepare(recipe, workspace(str(Path(folder) / "runs")), map_inline, SilentReporter())
        reader = RankStream(MixtureStream(stream_spec(recipe, prepared)))
        reader.next_batch()
        started, tokens = time.perf_counter(), 0
        for _ in range(BATCHES):
            tokens += int(reader.next_batch().counters["input_tokens"].sum())
        stream_rate = tokens / (time.perf_counter() - started)
        task = get_task("python_docs_module")
        made = [item for shard in task.shards("train") for item in task.examples(shard)]
        texts = [item.fields["inputs"] for item in made if isinstance(item, Example)]
        vocabulary = Vocabulary(prepared.vocabulary)
        started = time.perf_counter()
        tokenized = sum(len(ids) for ids in vocabulary.encode_batch(texts))
        peer_rate = tokenized / (time.perf_counter() - started)
    print(f"{'input tokens/s':<24}{'stream':>14}{'SentencePiece':>16}{'ratio':>8}")
    print(f"{'quickstart mixture':<24}{stream_rate:>14,.0f}{peer_rate:>16,.0f}{stream_rate / peer_rate:>8.2f}")


if __name__ == "__main__":
    main()
