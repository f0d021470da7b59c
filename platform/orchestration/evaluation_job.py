"""One piece of evaluation: a model's answers to a split of a task, or its loss on held-out text; anywhere.

A large split may be answered in parts by several evaluators: example k is in part `k mod parts`. Each leaves its
answers in a file, and when all are there, one evaluator judges them together.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixtura.platform.data.cache import open_cache
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.postprocessors import classes_of
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.data.task import Task
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.evaluation.baselines import Baseline, trivial_baselines
from mixtura.platform.evaluation.evaluator import (
    Decode,
    EvaluationExample,
    Ids,
    Prediction,
    TaskResult,
    evaluate_text,
    judged,
    predict,
    read_answers,
    write_answers,
)
from mixtura.platform.evaluation.submission import answer_records, questions
from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.filesystems import last_name
from mixtura.platform.orchestration.answering import choosing, decoding, scoring
from mixtura.platform.orchestration.ensembles import Answerer, load
from mixtura.platform.orchestration.evaluation_examples import (
    load_examples,
    text_examples,
    training_targets,
    with_eos,
)
from mixtura.platform.orchestration.tasks import chosen_task

if TYPE_CHECKING:
    from mixtura.models.t5 import Answering

_FEWEST_TOKENS = 128
"""Below which a batch is not made smaller for want of memory."""
_SMALLEST_PART = 64
"""Examples for which it is worth reading the model."""


@dataclass(frozen=True)
class EvaluationJob:
    """What to measure; plain values, so that it can be sent anywhere. The checkpoint is filled in when there is one."""

    task: dict[str, Any]
    """A `TaskChoice` as a dictionary."""
    split: str
    named: str
    """The split as results call it."""
    cache: str
    inputs_length: int
    targets_length: int
    decode_length: int
    batch_tokens: int
    beams: int = 1
    """Answers that beam search looks at side by side; 1 is greedy."""
    length_penalty: float = 0.6
    rank: bool = False
    """Whether the likeliest of a task's classes is the answer, where it has classes."""
    precision: str = "fp32"
    stream: dict[str, Any] | None = None
    """How held-out text becomes examples: a `StreamSpec` of this task alone; None for a task with right answers."""
    limit: int | None = None
    """At most so many examples, chosen by chance and the same for every checkpoint."""
    baselines: bool = False
    training: str = ""
    """Cache of the task whose training outputs are baselines; none if empty."""
    checkpoint: str = ""
    """A folder, or several as `Answerer.spec` has them."""
    answers: str = ""
    """File for what the checkpoint answered, as JSON lines."""
    earlier_answers: str = ""
    """File of the same checkpoint's answers to the same examples, if there is one: they are judged again then."""
    copies: dict[str, Any] = field(default_factory=dict)
    """`Copies` as a dictionary: where a node keeps local copies of caches that lie in a bucket."""
    hidden: bool = False
    """Whether the right answers are hidden: the rows come from the task's files, are answered and not judged."""
    size: int | None = None
    """How many examples the split has, where that is known."""
    parts: int = 1
    """Evaluators that share the examples."""
    part: int | None = None
    """Which part is answered, from 0, to be judged when all parts are; None to answer what is in no parts, or to judge
    what was answered in parts."""

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.task["name"])

    @property
    def data(self) -> str:
        """The digest of the examples: that of their cache, and behind it how many were chosen, if not all were."""
        digest = last_name(self.cache).rpartition("-")[2]
        return digest if self.limit is None else f"{digest}-{self.limit}"

    @property
    def asked(self) -> dict[str, Any]:
        """How answers are decoded, kept with each of them."""
        if self.stream is not None:
            return {"precision": self.precision}
        penalty = {} if self.beams == 1 else {"length_penalty": self.length_penalty}
        rank = {"rank": True} if self.rank else {}
        return {
            "decode_length": self.decode_length,
            "beams": self.beams,
            **penalty,
            **rank,
            "precision": self.precision,
        }

    @property
    def part_files(self) -> list[Path]:
        """What was answered in parts, until it is judged."""
        return [Path(f"{self.answers}.part-{part}-of-{self.parts}") for part in range(self.parts)]


def in_parts(jobs: Sequence[EvaluationJob], evaluators: int) -> list[EvaluationJob]:
    """Jobs with as many parts as give every evaluator about as much to answer.

    >>> rte = EvaluationJob({"name": "rte"}, "test", "test", "", 64, 8, 8, 1024, answers="a.jsonl", size=300)
    >>> [job.parts for job in in_parts([replace(rte, size=9000), rte, rte], 4)]
    [4, 1, 1]
    """
    share = max(_SMALLEST_PART, sum(map(_examples_of, jobs)) / evaluators)
    return [replace(job, parts=min(evaluators, _parts_of(job, share))) for job in jobs]


def _parts_of(job: EvaluationJob, share: float) -> int:
    judged_again = job.earlier_answers and Path(job.earlier_answers).is_file()
    alone = judged_again or not job.answers or job.stream is not None
    return 1 if alone else max(1, round(_examples_of(job) / share))


def _examples_of(job: EvaluationJob) -> int:
    return min(job.size or 0, job.limit or job.size or 0)


def run_job(job: EvaluationJob, device: str | None = None) -> dict[str, Any]:
    """Answer, and judge where right answers are known; returns the numbers (the answers go to their file), or nothing
    where it is one of several parts.

    Where a GPU has not enough memory, in smaller batches: nothing but the time depends on them.
    """
    import torch

    model, vocabulary = _loaded(job.checkpoint, job.precision, device)
    work = _answer_hidden if job.hidden else _measure
    while True:
        try:
            return work(job, model, vocabulary)
        except torch.OutOfMemoryError:
            if job.batch_tokens <= _FEWEST_TOKENS:
                raise
            torch.cuda.empty_cache()
            job = replace(job, batch_tokens=job.batch_tokens // 2)


def _measure(job: EvaluationJob, model: Answering, vocabulary: Vocabulary) -> dict[str, Any]:
    result = _on_text(job, model, vocabulary) if job.stream is not None else _on_task(job, model, vocabulary)
    if result is None:
        return {}
    if job.answers:
        records = [{**record, **job.asked} for record in result.answers]
        write_bytes_atomically(Path(job.answers), write_answers(replace(result, answers=records)).encode())
    return asdict(replace(result, answers=[]))


def _on_task(job: EvaluationJob, model: Answering, vocabulary: Vocabulary) -> TaskResult | None:
    task, cache = chosen_task(job.task), open_cache(job.cache, job.split, Copies(**job.copies))
    lengths = job.inputs_length, job.targets_length
    examples = load_examples(cache, *lengths, job.limit, around_answer=task.around_answer)
    found = _earlier_answers(job, len(examples))
    if found is None:
        rows, right = [example.ids for example in examples], [example.targets for example in examples]
        found = _answered(job, task, model, vocabulary, rows, right)
    if found is None:
        return None
    baselines = _baselines(job, task, vocabulary, examples)
    return judged(task, job.named, examples, found.predictions, found.seconds, baselines)


def _baselines(
    job: EvaluationJob, task: Task, vocabulary: Vocabulary, examples: Sequence[EvaluationExample]
) -> dict[str, Baseline]:
    if not job.baselines:
        return {}
    targets = training_targets(job.training, vocabulary, Copies(**job.copies)) if job.training else Counter()
    return trivial_baselines(task, targets, [example.fields for example in examples])


def _answer_hidden(job: EvaluationJob, model: Answering, vocabulary: Vocabulary) -> dict[str, Any]:
    """Answer a test split whose labels are hidden; the answers go to their file, how many there are is returned."""
    task = chosen_task(job.task)
    asked = list(questions(task))
    tokens = vocabulary.encode_batch([question.fields["inputs"] for question in asked])
    rows = [with_eos(tokens.values[start:end], job.inputs_length) for start, end in pairwise(tokens.offsets)]
    found = _answered(job, task, model, vocabulary, rows)
    if found is None:
        return {}
    records = answer_records(task, asked, found.predictions)
    lines = "".join(json.dumps({**record, **job.asked}, ensure_ascii=False) + "\n" for record in records)
    write_bytes_atomically(Path(job.answers), lines.encode())
    return {"task": job.name, "rows": len(asked), "seconds": found.seconds}


class _Answered(NamedTuple):
    predictions: list[Prediction]
    seconds: float


def _answered(
    job: EvaluationJob,
    task: Task,
    model: Answering,
    vocabulary: Vocabulary,
    rows: Sequence[Ids],
    targets: Sequence[Ids] | None = None,
) -> _Answered | None:
    """What a model answers to rows, in their order; None where it is one part, which waits for the others in its
    file."""
    if job.parts > 1 and job.part is None:
        return _joined(job, len(rows))
    started, places = time.perf_counter(), range(job.part or 0, len(rows), job.parts)
    decode, batch_tokens = _decode_of(job, task, model, vocabulary)
    mine = None if targets is None else [targets[place] for place in places]
    found = dict(predict([rows[place] for place in places], decode, vocabulary.decode, batch_tokens, mine))
    answers = _Answered([found[place] for place in range(len(places))], time.perf_counter() - started)
    if job.part is None:
        return answers
    write_bytes_atomically(job.part_files[job.part], json.dumps(answers).encode())
    return None


def _joined(job: EvaluationJob, count: int) -> _Answered:
    """The answers of all parts; their time is that of the slowest."""
    predictions: list[Prediction | None] = [None] * count
    seconds = 0.0
    for part, path in enumerate(job.part_files):
        found, taken = json.loads(path.read_text(encoding="utf-8"))
        predictions[part :: job.parts] = [Prediction(*one) for one in found]
        seconds = max(seconds, taken)
    assert None not in predictions, "every place is in one part"
    return _Answered([one for one in predictions if one is not None], seconds)


def _decode_of(job: EvaluationJob, task: Task, model: Answering, vocabulary: Vocabulary) -> tuple[Decode, int]:
    """How a task is answered, and how many encoder positions at a time: fewer where each has several answers."""
    if job.rank and (classes := classes_of(task.postprocess)):
        return choosing(model, [vocabulary.encode(one) for one in classes]), max(1, job.batch_tokens // len(classes))
    decode = decoding(model, job.decode_length, job.beams, job.length_penalty)
    return decode, max(1, job.batch_tokens // job.beams)


def _on_text(job: EvaluationJob, model: Answering, vocabulary: Vocabulary) -> TaskResult:
    assert job.stream is not None
    examples = text_examples(StreamSpec.from_dict(job.stream), vocabulary, Copies(**job.copies))
    return evaluate_text(
        job.name, job.named, examples, scoring(model), vocabulary.decode, batch_tokens=job.batch_tokens
    )


def _earlier_answers(job: EvaluationJob, count: int) -> _Answered | None:
    """What the checkpoint answered before, where it was asked exactly these examples, and decoded as now."""
    path = Path(job.earlier_answers)
    if not job.earlier_answers or not path.is_file():
        return None
    records, asked = read_answers(path), job.asked.items()
    same = len(records) == count and all(one.items() >= asked and "target_log_probability" in one for one in records)
    names = ("prediction", "log_probability", "target_log_probability")
    return _Answered([Prediction(*(one[name] for name in names)) for one in records], 0.0) if same else None


@lru_cache(maxsize=1)
def _loaded(checkpoint: str, precision: str, device: str | None) -> tuple[Answering, Vocabulary]:
    return load(Answerer.of_spec(checkpoint), precision, device)


def forget_model() -> None:
    """Give back the memory of the model that was evaluated last."""
    import torch

    _loaded.cache_clear()
    torch.cuda.empty_cache()
