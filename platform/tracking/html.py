"""Pages that open without a network: a template of `templates/` with values, everything in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.tracking.pages import shown


def write_page(template: str, values: Mapping[str, Any], path: Path) -> None:
    """Fill a template and write the page. Text from outside is escaped."""
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
    write_bytes_atomically(path, environment.get_template(template).render(values).encode())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else shown(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
