"""`mixtura tasks`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mixtura.platform.cli.arguments import AsJson

if TYPE_CHECKING:
    from mixtura.platform.data.task import Task

app = typer.Typer(help="The registry of tasks.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A task's name, or the path of a task file in YAML.")]
Split = Annotated[str, typer.Option(help="Which split.")]
Root = Annotated[
    str | None, typer.Option(help="Folder or bucket with the original files; the public homes if not given.")
]
Files = Annotated[
    list[str] | None, typer.Option("--file", metavar="SPLIT=PATH", help="Read this file, glob or URI for a split.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="One of the task's named choices.")
]


@app.command("list")
def list_tasks(as_json: AsJson = False) -> None:
    """List all tasks.

    Example: mixtura tasks list
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.tasks import get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    rows: list[dict[str, Any]] = [
        {
            "task": task.name,
            "kind": task.kind if task.trained else "evaluation",
            "splits": list(task.splits),
            "metrics": [metric.name for metric in task.metrics],
            "size": task.rate_size,
            "description": task.description,
        }
        for task in tasks
    ]
    if not as_json:
        rows = [{**row, **{name: ", ".join(row[name]) or "-" for name in ("splits", "metrics")}} for row in rows]
    print_table("Tasks", rows, as_json=as_json)


@app.command("show")
def show(
    name: Name,
    root: Root = None,
    files: Files = None,
    options: Options = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A spiece.model to count tokens with; words are counted if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Read at most so many rows of a split.", min=1)] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Show a task: where its data comes from, examples, sizes, labels, lengths and what a length limit would cut.

    Example: mixtura tasks show python_docs_module
    """
    from mixtura.platform.cli.output import print_json
    from mixtura.platform.cli.task_page import print_page
    from mixtura.platform.orchestration.task_facts import task_facts

    facts = task_facts(_task(name, root, files, options), vocabulary, limit)
    if as_json:
        print_json(facts)
    else:
        print_page(facts)


@app.command("preview")
def preview(
    name: Name,
    split: Split = "train",
    rows: Annotated[Path | None, typer.Option(help="Raw rows as JSON lines, instead of the source's own.")] = None,
    count: Annotated[int, typer.Option(help="How many rows of the source.", min=1)] = 5,
    root: Root = None,
    files: Files = None,
    options: Options = None,
) -> None:
    """Print what a task makes of its first rows, as JSON lines; rows left out are named on standard error.

    Example: mixtura tasks preview python_docs_module --count 3
    """
    from itertools import takewhile

    from mixtura.platform.data.task import RejectedRow
    from mixtura.platform.errors import UnknownNameError
    from mixtura.platform.orchestration.tasks import refuse_all_rejected
    from mixtura.platform.yaml_files import SPLITS

    task = _task(name, root, files, options)
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if rows is not None:
        given = [row for _, row in _json_lines(rows, "rows")]
        if wrong := [place for place, row in enumerate(given) if not isinstance(row, dict)]:
            _refuse(f"row {wrong[0]} of {rows} is no JSON object: {json.dumps(given[wrong[0]])[:80]}")
        made = task.transform(given, rows.name, split)
    else:
        first = task.shards(split)[0]
        refuse_all_rejected(task, split)
        made = takewhile(lambda item: item.row < count, task.examples(first))
    for item in made:
        if isinstance(item, RejectedRow):
            sys.stderr.write(f"row {item.row} of {item.origin} is left out: {item.reason}\n")
        else:
            sys.stdout.write(_json_line({"row": item.row, **item.fields}))


@app.command("score")
def score(
    name: Name,
    examples: Annotated[Path, typer.Option(help="Examples as `preview` prints them, JSON lines.")],
    predictions: Annotated[Path, typer.Option(help="One prediction an example, as a JSON string a line.")],
    options: Options = None,
) -> None:
    """Print the task's metrics for given predictions, as JSON.

    Example: mixtura tasks score glue_rte --examples examples.jsonl --predictions predictions.jsonl
    """
    import math

    task = _task(name, None, None, options)
    if not task.metrics:
        _refuse(f"task {task.name!r} has no metric")
    rows, texts = _json_lines(examples, "examples"), _json_lines(predictions, "predictions")
    for number, row in rows:
        if not isinstance(row, dict) or not {"inputs", "targets"} <= row.keys():
            _refuse(f"line {number} of {examples} is no example: it must be an object with inputs and targets")
    for number, text in texts:
        if not isinstance(text, str):
            _refuse(f"line {number} of {predictions} is {json.dumps(text)[:80]}: a prediction is a JSON string")
    if len(rows) != len(texts):
        _refuse(f"{examples} has {len(rows)} examples, but {predictions} has {len(texts)} predictions")
    answers, targets = [], []
    for (number, row), (_, text) in zip(rows, texts, strict=True):
        try:
            answers.append(task.postprocess(text, row))
            targets.append(task.answer(row))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            _refuse(
                f"line {number} of {examples} is no example of task {task.name!r}, as `mixtura tasks preview` prints "
                f"them: {type(error).__name__}: {error}"
            )
    try:
        values = {metric.name: float(metric(answers, targets)) for metric in task.metrics}
    except (AttributeError, TypeError, ValueError) as error:
        _refuse(f"the examples in {examples} cannot be scored for task {task.name!r}: {error}")
    shown: dict[str, Any] = {name: "nan" if math.isnan(value) else value for name, value in values.items()}
    sys.stdout.write(json.dumps(shown) + "\n")


def _json_line(value: Any) -> str:
    """One line of JSON, readable where it can be: half a surrogate pair has no UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text + "\n"


def _task(name: str, root: str | None, files: list[str] | None, options: list[str] | None) -> Task:
    """A registered task, or one from a file, bound to its files and with its options chosen."""
    from mixtura.platform.recipe_files import is_path
    from mixtura.platform.yaml_files import files_by_split, read_task_file
    from mixtura.tasks import TaskChoice

    definition, own = read_task_file(Path(name).expanduser()) if is_path(name) else (None, {})
    given: dict[str, list[str]] = {}
    for split, path in _pairs(files, "--file"):
        given.setdefault(split, []).append(path)
    bound = {split: tuple(paths) for split, paths in {**own, **files_by_split(given, "--file")}.items()}
    chosen = dict(_pairs(options, "--option"))
    return TaskChoice(name if definition is None else definition["name"], root, bound, chosen, definition).task()


def _pairs(texts: list[str] | None, what: str) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts or []]
    for key, equals, value in pairs:
        if not (key and equals and value):
            _refuse(f"{what} was given {key!r}: write NAME=VALUE")
    return [(key, value) for key, _, value in pairs]


def _json_lines(path: Path, what: str) -> list[tuple[int, Any]]:
    """The values of a file of JSON lines with the numbers of their lines, from 1."""
    if not path.is_file():
        _refuse(f"{what} were to be read from {path}, but there is no such file")
    values = []
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    values.append((number, json.loads(line)))
    except UnicodeDecodeError as error:
        _refuse(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}, after line {number}")
    except (json.JSONDecodeError, RecursionError) as error:
        _refuse(f"line {number} of {path} is not JSON: {error}")
    return values


def _refuse(message: str) -> NoReturn:
    from mixtura.platform.errors import RequestError

    raise RequestError(message)
