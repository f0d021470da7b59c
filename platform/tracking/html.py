"""Pages that open without a network: a template of `templates/` with values, everything in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.platform.errors import RequestError
from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.tracking.pages import shown
from mixtura.platform.visible import visible


def check_page_path(path: Path) -> None:
    """Raise RequestError where no page can be: a folder, or below something that is no folder."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder: name a file in it, such as {path / 'report.html'}")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise RequestError(f"{path} cannot be written, since {there} is no folder: name another file")


def write_page(template: str, values: Mapping[str, Any], path: Path) -> None:
    """Fill a template and write the page. Text from outside is escaped, and has no invisible characters."""
    check_page_path(path)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mixtura.platform.tracking", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["shown"] = _shown
    path.parent.mkdir(parents=True, exist_ok=True)
    page = environment.get_template(template).render(values)
    write_bytes_atomically(path, visible(page).encode())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else shown(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
