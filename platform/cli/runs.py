"""`mixtura runs`."""

from __future__ import annotations

import time

import typer

from mixtura.platform.cli.arguments import AsJson, Root

app = typer.Typer(help="The runs of a workspace.", no_args_is_help=True)


@app.command("list")
def list_runs(root: Root = "runs", as_json: AsJson = False) -> None:
    """List the runs with their status and checkpoints.

    Example: mixtura runs list
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.platform.training.checkpoint import list_checkpoints
    from mixtura.platform.workspace import workspace

    rows = []
    for run in workspace(root).runs():
        facts, saved = run.facts(), list_checkpoints(run.checkpoints)
        rows.append(
            {
                "run": run.name,
                "recipe": facts["recipe"],
                "status": facts["status"],
                "attempts": facts["attempts"],
                "checkpoints": len(saved),
                "last step": saved[-1].step if saved else None,
                "GB": sum(info.size_bytes for info in saved) / 1e9,
                "changed": time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["at"])),
            }
        )
    print_table(f"Runs in {root}", rows, as_json=as_json)
