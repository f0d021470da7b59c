"""A task written in YAML: no code, for the user's own data.

    name: reviews
    description: A product review to whether its writer was content.
    source:                             # files of each split: .csv, .tsv, .jsonl, .json, .parquet, .txt, also .gz
      train: data/train-*.csv
      validation: data/dev.csv
    inputs: "review title: {title} text: {text}"
    targets: "{stars}"
    labels: {1: negative, 5: positive}  # or a list, whose places are the values; without it any text is an answer
    metrics: [accuracy]

A field in braces is a column of the files; `{translation.en}` reaches into nested ones. Rows whose label is not among
`labels` are left out and counted. The source is read where the recipe is loaded, so a definition here has none.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mixtura.platform.data.postprocessors import ClassIndex, number
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import Metric, Rejected, Row, Task, answer_as_text
from mixtura.platform.errors import ConfigError, UnknownNameError

CLASS_METRICS = frozenset(
    [
        "accuracy",
        "exact_match",
        "sequence_accuracy",
        "all_match",
        "f1",
        "macro_f1",
        "mean_3class_f1",
        "matthews_corrcoef",
    ]
)
"""Metrics that compare places among labels: `f1` those of two, `mean_3class_f1` of three."""

NUMBER_METRICS = frozenset({"pearson_corrcoef", "spearman_corrcoef"})

TEXT_METRICS = frozenset(
    [
        "accuracy",
        "exact_match",
        "sequence_accuracy",
        "all_match",
        "macro_f1",
        "squad_em",
        "squad_f1",
        "trivia_qa_em",
        "trivia_qa_f1",
        "bleu",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "bootstrap_rouge1",
        "bootstrap_rouge2",
        "bootstrap_rougeLsum",
        "mean_edit",
        "median_edit",
        "min_edit",
        "max_edit",
        "sum_edit",
        "name_f1",
    ]
)


class Definition(BaseModel):
    """What a task file says, beside its source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    inputs: str
    targets: str
    description: str = "A task of the user's own."
    labels: dict[str, str] | None = None
    """Value in the files to the answer that is written."""
    metrics: list[str] = Field(default=["accuracy"], min_length=1)
    columns: list[str] | None = None
    """Names of the columns, where the files are tables without a header."""
    size: int | None = Field(default=None, gt=0)
    """Number of training examples that mixing rates are made from; counted if not given."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes that `labels` makes, in order."""
        return tuple(dict.fromkeys((self.labels or {}).values()))

    @field_validator("labels", mode="before")
    @classmethod
    def _list_of_answers(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping):
            return value
        for answer in value.values():
            if not isinstance(answer, str | int | float) or isinstance(answer, bool):
                raise ValueError(f"an answer is {answer!r}: write it in quotes, so that YAML reads it as text")
        if len(value) < 2:
            raise ValueError("a choice needs at least two answers; leave labels out where any text is an answer")
        return {_as_text(key): str(answer) for key, answer in value.items()}

    @field_validator("columns")
    @classmethod
    def _columns_differ(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("columns need names that differ")
        return value


@dataclass(frozen=True)
class Template:
    """Text with columns in braces.

    >>> Template("from {translation.en}").text({"translation": {"en": "cat"}})
    'from cat'
    """

    pattern: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in braces, in order; ValueError for anything else in braces."""
        names = []
        for _, name, form, conversion in string.Formatter().parse(self.pattern):
            if form or conversion:
                raise ValueError("only the name of a column may stand in braces")
            names += [] if name is None else [name]
        return tuple(names)

    def text(self, row: Row) -> str:
        """The pattern with the row's values; a row without one of them is rejected."""
        parts = []
        for literal, name, _, _ in string.Formatter().parse(self.pattern):
            parts += [literal, *([] if name is None else [_as_text(_value(row, name))])]
        return "".join(parts)


def _value(row: Row, name: str) -> Any:
    if row.get(name) is not None:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            raise Rejected(f"no field {name!r}")
    return value


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class FilledTemplates:
    """Rows to `inputs` and `targets`. Nothing else of a row is kept."""

    inputs: Template
    targets: Template
    labels: Mapping[str, str] | None

    @property
    def __name__(self) -> str:
        return "templates"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example of one row."""
        inputs, targets = self.inputs.text(row), self.targets.text(row)
        if self.labels is not None:
            whole = targets.removesuffix(".0")  # a column of numbers with a gap in it comes as 1.0
            known = next((text for text in (targets, whole) if text in self.labels), None)
            if known is None and targets not in self.labels.values():
                raise Rejected("label is none of the labels")
            targets = self.labels[known] if known is not None else targets
        yield {"inputs": inputs, "targets": targets}


def task_of(definition: Mapping[str, Any], metrics: Mapping[str, Metric]) -> Task:
    """The task that a definition describes, not yet bound to its files; ConfigError says what is wrong with it."""
    checked = _checked(definition)
    inputs, targets = _template(checked, "inputs"), _template(checked, "targets")
    if checked.labels is not None and len(targets.columns) != 1:
        raise ConfigError(
            f"task {checked.name!r}: with labels, targets must be one column, such as '{{label}}'; "
            f"found {checked.targets!r}"
        )
    for name in checked.metrics:
        if name not in metrics:
            raise UnknownNameError("metric", name, metrics, f" in task {checked.name!r}")
    _refuse_unfit_metrics(checked)
    postprocess: Callable[[str, Mapping[str, Any]], Any] = answer_as_text
    if checked.labels is not None:
        postprocess = ClassIndex(checked.answers)
    elif set(checked.metrics) <= NUMBER_METRICS:
        postprocess = number
    return Task(
        checked.name,
        FileSource(hub={}, headerless=(tuple(checked.columns),) if checked.columns else ()),
        (FilledTemplates(inputs, targets, checked.labels),),
        kind="supervised",
        version=repr(sorted(checked.model_dump().items())),
        description=checked.description,
        metrics=tuple(metrics[name] for name in checked.metrics),
        postprocess=postprocess,
        rate_size=checked.size,
    )


def _refuse_unfit_metrics(definition: Definition) -> None:
    """A metric that cannot compare such answers would only say so after training."""
    given, classes = set(definition.metrics), len(definition.answers)
    if definition.labels is not None:
        fit, what = CLASS_METRICS - ({"f1"} if classes != 2 else set()), f"one of {classes} labels"
        fit -= {"mean_3class_f1"} if classes != 3 else set()
    elif given <= NUMBER_METRICS:
        return
    else:
        fit, what = TEXT_METRICS, "text (there are no labels)"
    if unfit := sorted(given - fit):
        raise ConfigError(
            f"task {definition.name!r}: metric {unfit[0]!r} cannot compare its answers, which are {what}; "
            f"use {', '.join(sorted(fit))}"
        )


def _template(definition: Definition, field: str) -> Template:
    template = Template(getattr(definition, field))
    try:
        columns = template.columns
    except ValueError as error:
        raise ConfigError(
            f"task {definition.name!r}: {field} is {template.pattern!r}: {error}; "
            "write braces themselves as {{ and }}"
        ) from None
    if not columns or "" in columns:
        raise ConfigError(
            f"task {definition.name!r}: {field} is {template.pattern!r}: "
            "name at least one column of the files in braces, for example {text}"
        )
    return template


def _checked(definition: Mapping[str, Any]) -> Definition:
    try:
        return Definition.model_validate(definition)
    except ValidationError as error:
        problem = error.errors()[0]
    name, key = definition.get("name", "?"), ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        raise UnknownNameError("key", key, [*Definition.model_fields, "source"], f" in the file of task {name!r}")
    if problem["type"] == "missing":
        raise ConfigError(f"the file of task {name!r} lacks {key}")
    raise ConfigError(
        f"the file of task {name!r}: {key} is {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}"
    )
