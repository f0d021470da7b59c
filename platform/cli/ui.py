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

    Runs that go to a tracking server have their links there, and where all do, nothing is started.

    Example: mixtura ui --port 5001
    """
    from mixtura.platform.cli.output import print_lines
    from mixtura.platform.errors import RequestError
    from mixtura.platform.orchestration.track import experiment_id, runs_on_servers
    from mixtura.platform.tracking.mlflow_store import is_server
    from mixtura.platform.tracking.pages import checkpoint_link, models_link
    from mixtura.platform.tracking.server import serve_ui
    from mixtura.platform.workspace import workspace

    space = workspace(root)
    elsewhere = runs_on_servers(space)
    for name, (server_url, experiment) in elsewhere.items():
        print_lines(f"checkpoints of {name}: {checkpoint_link(server_url, experiment, name)}")
    here = [run.name for run in space.runs() if run.name not in elsewhere]
    found = experiment_id(space) if here and not is_server(space.tracking_uri) else None
    if found is None:
        if elsewhere:
            return
        raise RequestError(f"{space.root} has no tracked run yet: start one with `mixtura train quickstart`")
    with serve_ui(space.tracking_uri, port, log=space.root / "mlflow-server.log") as server:
        print_lines(f"MLflow on {server.url} (loopback only); Ctrl-C ends it")
        for name in here:
            print_lines(f"checkpoints of {name}: {checkpoint_link(server.url, found, name)}")
        print_lines(f"all models: {models_link(server.url, found)}")
        server.wait()
