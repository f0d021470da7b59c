"""Evaluation as work of its own: one checkpoint on one split of one task, or on held-out text, anywhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtura.platform.config import Config
from mixtura.platform.data.cache import open_cache
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.filesystems import last_name, shown
from mixtura.platform.data.postprocessors import classes_of
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.data.task import Task
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.evaluation.baselines import Baseline, trivial_baselines
from mixtura.platform.evaluation.evaluator import (
    Decode,
    MetricResult,
    Prediction,
    TaskResult,
    evaluate_task,
    evaluate_text,
    judged,
    predict,
    write_answers,
)
from mixtura.platform.evaluation.submission import answer_records, questions
from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.orchestration.answering import choosing, decoding, scoring
from mixtura.platform.orchestration.ensembles import Answerer, load
from mixtura.platform.orchestration.evaluation_examples import load_examples, text_examples, training_targets, with_eos
from mixtura.platform.orchestration.mixture import held_out_spec
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.tasks import choice_of, chosen_task, prepared_splits, tasks_of
from mixtura.platform.tracking.records import EvaluationResult, EventWriter
from mixtura.platform.workspace import Run

if TYPE_CHECKING:
    from mixtura.models.t5 import Answering


_FEWEST_TOKENS = 128
"""Below which a batch is not made smaller for want of memory."""

WHOLE_VALIDATION = "validation_whole"
"""Results on all of a validation split, beside those of every checkpoint on a choice of its examples."""


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


def jobs_for(config: Config, prepared: Prepared) -> list[EvaluationJob]:
    """What is measured on every checkpoint: each task with right answers, on its validation split; and the loss of each
    task's held-out text."""
    answered = [
        replace(job_for(config, name, "validation", prepared.caches[name]), limit=config.evaluation.examples)
        for name, splits in _judged_splits(config, prepared).items()
        if "validation" in splits
    ]
    return answered + [_text_job(config, prepared, name) for name in prepared.held_out]


def final_jobs_for(config: Config, prepared: Prepared) -> list[EvaluationJob]:
    """What is measured once, on the best checkpoint: each task's whole test split, or its whole validation split where
    the answers of the test split are not public."""
    tasks = tasks_of(config)
    trained = {judge: name for name, task in tasks.items() for judge in task.evaluated_by}
    trained |= {name: name for name, task in tasks.items() if task.trained}
    jobs = []
    for name, splits in _judged_splits(config, prepared).items():
        if splits:
            split = "test" if "test" in splits else "validation"
            job = job_for(config, name, split, prepared.caches[name])
            named = split if split == "test" else WHOLE_VALIDATION
            training = prepared.caches[trained[name]] if name in trained else ""
            jobs.append(replace(job, named=named, baselines=True, training=training))
    return jobs


def _judged_splits(config: Config, prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """The splits of each prepared task whose right answers are known."""
    return {
        name: tuple(split for split in prepared_splits(task) if split in task.evaluated)
        for name, task in tasks_of(config).items()
        if name in prepared.caches and task.metrics
    }


def _text_job(config: Config, prepared: Prepared, name: str) -> EvaluationJob:
    spec = held_out_spec(config, prepared, name)
    job = job_for(config, name, "validation", prepared.held_out[name])
    return replace(job, limit=config.evaluation.text_pieces, stream=spec.to_dict())


def job_for(config: Config, name: str, split: str, cache: str = "") -> EvaluationJob:
    """A split of a task, answered as the recipe says, by a checkpoint that is not named yet."""
    return EvaluationJob(
        task=asdict(choice_of(config, name)),
        split=split,
        named=split,
        cache=cache,
        inputs_length=config.data.inputs_length,
        targets_length=config.data.targets_length,
        decode_length=config.evaluation.decode_length,
        batch_tokens=config.evaluation.batch_tokens,
        beams=config.evaluation.beams,
        length_penalty=config.evaluation.length_penalty,
        rank=config.evaluation.classification == "rank",
        precision=config.evaluation.precision,
        copies=asdict(copies_of(config)),
    )


def run_job(job: EvaluationJob, device: str | None = None) -> dict[str, Any]:
    """Answer, and judge where right answers are known; returns the numbers (the answers go to their file).

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
    if job.answers:
        records = [{**record, **job.asked} for record in result.answers]
        write_bytes_atomically(Path(job.answers), write_answers(replace(result, answers=records)).encode())
    return asdict(replace(result, answers=[]))


def _on_task(job: EvaluationJob, model: Answering, vocabulary: Vocabulary) -> TaskResult:
    copies = Copies(**job.copies)
    task, cache = chosen_task(job.task), open_cache(job.cache, job.split, copies)
    lengths = job.inputs_length, job.targets_length
    examples = load_examples(cache, *lengths, job.limit, around_answer=task.around_answer)
    baselines: dict[str, Baseline] = {}
    if job.baselines:
        targets = training_targets(job.training, vocabulary, copies) if job.training else Counter()
        baselines = trivial_baselines(task, targets, [example.fields for example in examples])
    earlier = _earlier_predictions(job, len(examples))
    if earlier is not None:
        return judged(task, job.named, examples, earlier, 0.0, baselines)
    decode, batch_tokens = _decode_of(job, task, model, vocabulary)
    return evaluate_task(
        task, job.named, examples, decode, vocabulary.decode, batch_tokens=batch_tokens, baselines=baselines
    )


def _answer_hidden(job: EvaluationJob, model: Answering, vocabulary: Vocabulary) -> dict[str, Any]:
    """Answer a test split whose labels are hidden; the answers go to their file, how many there are is returned."""
    task, started = chosen_task(job.task), time.perf_counter()
    asked = list(questions(task))
    tokens = vocabulary.encode_batch([question.fields["inputs"] for question in asked])
    rows = [with_eos(tokens.values[start:end], job.inputs_length) for start, end in pairwise(tokens.offsets)]
    decode, batch_tokens = _decode_of(job, task, model, vocabulary)
    found = dict(predict(rows, decode, vocabulary.decode, batch_tokens))
    records = answer_records(task, asked, [found[place] for place in range(len(asked))])
    lines = "".join(json.dumps({**record, **job.asked}, ensure_ascii=False) + "\n" for record in records)
    write_bytes_atomically(Path(job.answers), lines.encode())
    return {"task": job.name, "rows": len(asked), "seconds": time.perf_counter() - started}


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


def _earlier_predictions(job: EvaluationJob, count: int) -> list[Prediction] | None:
    """What the checkpoint answered before, where it was asked exactly these examples, and decoded as now."""
    path = Path(job.earlier_answers)
    if not job.earlier_answers or not path.is_file():
        return None
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    asked = job.asked.items()
    same = len(records) == count and all(one.items() >= asked and "target_log_probability" in one for one in records)
    names = ("prediction", "log_probability", "target_log_probability")
    return [Prediction(*(record[name] for name in names)) for record in records] if same else None


@lru_cache(maxsize=1)
def _loaded(checkpoint: str, precision: str, device: str | None) -> tuple[Answering, Vocabulary]:
    return load(Answerer.of_spec(checkpoint), precision, device)


def forget_model() -> None:
    """Give back the memory of the model that was evaluated last."""
    import torch

    _loaded.cache_clear()
    torch.cuda.empty_cache()


def evaluation_events(
    run_path: Path,
    checkpoint: Path,
    step: int,
    jobs: Sequence[EvaluationJob],
    evaluate: Callable[[Sequence[EvaluationJob]], list[dict[str, Any]]],
) -> list[TaskResult]:
    """Evaluate a checkpoint of a run and report the results to the run's events."""
    if not jobs:
        return []
    run, started = Run(run_path), time.perf_counter()
    ready = [
        replace(
            job,
            checkpoint=str(checkpoint),
            answers=str(run.predictions / checkpoint.name / f"{job.name}.{job.named}.jsonl"),
            earlier_answers=str(run.predictions / checkpoint.name / f"{job.name}.{job.split}.jsonl")
            if job.named == WHOLE_VALIDATION
            else "",
        )
        for job in jobs
    ]
    results = answered(evaluate(ready))
    seconds = time.perf_counter() - started
    run.events.mkdir(exist_ok=True)
    records = [
        record for job, result in zip(ready, results, strict=True) for record in _records(job, result, step, seconds)
    ]
    with EventWriter(run.events / f"evaluate-{step:06d}-{jobs[0].named}-{time.time_ns()}.jsonl") as events:
        events.write(*records)
    return results


def _records(job: EvaluationJob, result: TaskResult, step: int, seconds: float) -> list[EvaluationResult]:
    return [
        EvaluationResult(
            step=step,
            task=result.task,
            split=result.split,
            metric=metric.metric,
            value=metric.value,
            low=metric.low,
            high=metric.high,
            baseline=None if metric.baseline is None else metric.baseline.value,
            baseline_rule=None if metric.baseline is None else metric.baseline.rule,
            examples=result.examples,
            seconds=seconds,
            higher_is_better=metric.higher_is_better,
            target_tokens=result.target_tokens,
            data=job.data,
            data_source=shown(job.cache),
        )
        for metric in result.metrics
    ]


def answered(plain: Sequence[dict[str, Any]]) -> list[TaskResult]:
    """The results that jobs gave in plain values."""
    return [_result(values) for values in plain]


def _result(values: dict[str, Any]) -> TaskResult:
    metrics = [
        MetricResult(**{**metric, "baseline": None if metric["baseline"] is None else Baseline(**metric["baseline"])})
        for metric in values["metrics"]
    ]
    return TaskResult(**{**values, "metrics": metrics})
