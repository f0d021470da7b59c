"""`mixtura tasks`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixtura.platform.cli.arguments import AsJson

app = typer.Typer(help="The registry of tasks.", no_args_is_help=True)


@app.command("list")
def list_tasks(as_json: AsJson = False) -> None:
    """List all tasks.

    Example: mixtura tasks list
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.tasks import get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    rows = [
        {
            "task": task.name,
            "kind": task.kind,
            "splits": ", ".join(task.splits),
            "metrics": ", ".join(metric.name for metric in task.metrics) or "-",
            "description": task.description,
        }
        for task in tasks
    ]
    print_table("Tasks", rows, as_json=as_json)


@app.command("preview")
def preview(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    rows: Annotated[Path | None, typer.Option(help="Raw rows as JSON lines, instead of the source's own.")] = None,
    count: Annotated[int, typer.Option(help="How many examples.", min=1)] = 5,
) -> None:
    """Print what a task makes of its first rows, as JSON lines; rows left out are named on standard error.

    Example: mixtura tasks preview python_docs_module --count 3
    """
    from itertools import islice

    from mixtura.platform.data.task import RejectedRow
    from mixtura.platform.errors import RequestError
    from mixtura.tasks import get_task

    task = get_task(name)
    if rows is not None:
        if not rows.is_file():
            raise RequestError(f"rows were to be read from {rows}, but there is no such file")
        given = [json.loads(line) for line in rows.read_text().splitlines() if line.strip()]
        made = task.transform(given, rows.name)
    else:
        made = (example for shard in task.shards(split) for example in task.examples(shard))
    shown = made if rows is not None else islice(made, count)
    for example in shown:
        if isinstance(example, RejectedRow):
            sys.stderr.write(f"row {example.row} of {example.origin} is left out: {example.reason}\n")
        else:
            sys.stdout.write(json.dumps({"row": example.row, **example.fields}, ensure_ascii=False) + "\n")
