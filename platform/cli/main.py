"""The frame of the command line: commands, exit codes, and one message instead of a traceback.

Exit codes: 0 done, 1 failed, 2 bad request. Heavy libraries are imported inside commands, so that --help is quick.
"""

from __future__ import annotations

import errno
import os
import sys

import typer

from mixtura.platform.cli import (
    checkpoints,
    compare,
    corpus,
    evaluate,
    mixture,
    plan,
    predict,
    prepare,
    recipes,
    report,
    runs,
    search,
    stream,
    tasks,
    train,
    ui,
)
from mixtura.platform.errors import MixturaError

app = typer.Typer(
    name="mixtura",
    help="One text-to-text model, many tasks, any number of machines: multitask T5 training on Ray and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("prepare")(prepare.prepare)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("search")(search.search)
app.command("ui")(ui.ui)
app.add_typer(recipes.app, name="recipes")
app.add_typer(tasks.app, name="tasks")
app.add_typer(mixture.app, name="mixture")
app.add_typer(corpus.app, name="corpus")
app.add_typer(stream.app, name="stream")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(runs.app, name="runs")

_ANSWERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What the system refuses for reasons that its own words tell; any other error of it is ours, with a traceback."""


def main() -> None:
    """Run the command line; an error that a person can act on is printed as one message."""
    try:
        app()
    except MixturaError as error:
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`mixtura ... | head`): nothing is wrong on our side.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in _ANSWERS:
            raise
        sys.stdout.flush()
        where = f": {error.filename}" if error.filename else ""
        sys.stderr.write(f"error: {os.strerror(error.errno)}{where}; mend that and run the same command\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
