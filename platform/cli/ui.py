"""`mixtura ui`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixtura.platform.cli.arguments import Root


def ui(
    root: Root = "runs",
    port: Annotated[int | None, typer.Option(help="Port on loopback; a free one if not given.", min=1)] = None,
) -> None:
    """Serve MLflow on loopback at the workspace's store, until Ctrl-C; prints a link to each run's checkpoints.

    Example: mixtura ui --port 5001
    """
    from mixtura.platform.cli.output import print_lines
    from mixtura.platform.errors import RequestError
    from mixtura.platform.orchestration.track import experiment_id
    from mixtura.platform.tracking.pages import checkpoint_link, models_link
    from mixtura.platform.tracking.server import serve_ui
    from mixtura.platform.workspace import workspace

    space = workspace(root)
    found = experiment_id(space) if space.runs() else None
    if found is None:
        raise RequestError(f"{space.root} has no tracked run yet: start one with `mixtura train quickstart`")
    with serve_ui(space.tracking_uri, port, log=space.root / "mlflow-server.log") as server:
        print_lines(f"MLflow on {server.url} (loopback only); Ctrl-C ends it")
        for run in space.runs():
            print_lines(f"checkpoints of {run.name}: {checkpoint_link(server.url, found, run.name)}")
        print_lines(f"all models: {models_link(server.url, found)}")
        server.wait()
