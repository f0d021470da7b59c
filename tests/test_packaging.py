"""The wheel: what a person gets who installs Mixtura instead of checking it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy of it without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "*.db"
    )
    shutil.copytree(REPOSITORY, folder / "tree", symlinks=True, ignore=left)
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = folder.glob("mixtura-*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_source_recipe_and_page(names: set[str]) -> None:
    sources = [path for room in ("platform", "tasks", "models") for path in (REPOSITORY / room).rglob("*.py")]
    wanted = {f"mixtura/{path.relative_to(REPOSITORY).as_posix()}" for path in sources}
    data = [*(REPOSITORY / "platform/recipes").rglob("*.yaml"), *(REPOSITORY / "platform/tracking").rglob("*.html")]
    wanted |= {f"mixtura/{path.relative_to(REPOSITORY).as_posix()}" for path in data}
    wanted |= {"mixtura/__init__.py", "mixtura/__main__.py", "mixtura/py.typed"}
    assert wanted <= names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    strange = [name for name in names if not name.startswith("mixtura/") and ".dist-info/" not in name]
    assert not strange
    assert not [name for name in names if "tests" in Path(name).parts or "__pycache__" in name]
    assert "mixtura/platform/__init__.py" not in names


def test_the_installed_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [*PIP, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = (
        "import mixtura, mixtura.models.t5, mixtura.platform.data.mixture, mixtura.tasks, platform\n"
        "from mixtura.platform.recipe_files import load, recipe_names\n"
        "print(mixtura.__file__, platform.system(), recipe_names(), load('quickstart').training.steps > 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(str(target / "mixtura/__init__.py"))
    assert "'quickstart'" in result.stdout
    help_text = subprocess.run(
        [sys.executable, str(target / "bin/mixtura"), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert help_text.returncode == 0, help_text.stderr
    assert "train" in help_text.stdout
