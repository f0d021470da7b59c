"""The direction of imports, and the traps of a folder named like a standard module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Only these places may import the library.
HOMES = {
    "ray": ("platform/orchestration/",),
    "mlflow": ("platform/tracking/mlflow_",),  # each file there that begins so
    "deepspeed": ("platform/training/engine.py",),
    "optuna": ("platform/orchestration/search.py",),
    "pickle": (),
    "cloudpickle": (),
}
# What a room may import of the others, beside the roots (the single files of platform/).
ROOTS = {
    "config",
    "containers",
    "errors",
    "files",
    "filesystems",
    "random_bits",
    "recipe_files",
    "visible",
    "workspace",
    "yaml_files",
}
MAY_IMPORT = {
    "models": {"models"},
    "platform/corpus": {"platform/corpus"},
    "platform/data": {"platform/data"},
    "tasks": {"tasks", "platform/data", "platform/evaluation/metrics"},
    "platform/training": {"platform/training"},
    "platform/evaluation": {"platform/evaluation", "platform/data"},
    "platform/tracking": {"platform/tracking"},
    "platform/search": {"platform/search"},
    "platform/orchestration": None,
    "platform/cli": None,
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for room in ("platform", "tasks", "models"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            yield path.relative_to(REPOSITORY).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_each_library_is_imported_in_its_home_only() -> None:
    found = [
        f"{path} imports {name}"
        for path, tree in sources()
        for name in imported(tree)
        if (homes := HOMES.get(name.split(".")[0])) is not None and not path.startswith(homes)
    ]
    assert not found


def test_rooms_import_only_what_their_direction_allows() -> None:
    wrong = []
    for path, tree in sources():
        room = next((room for room in sorted(MAY_IMPORT, key=len, reverse=True) if path.startswith(f"{room}/")), None)
        allowed = MAY_IMPORT[room] if room else set()
        if allowed is None:
            continue
        for name in imported(tree):
            target = name.replace(".", "/").removeprefix("mixtura/")
            if not name.startswith("mixtura.") or target.split("/")[:2][-1] in ROOTS:
                continue
            if not any(target.startswith(prefix) for prefix in allowed):
                wrong.append(f"{path} imports {name}")
    assert not wrong


def test_nothing_imports_the_rooms_that_join_everything() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in sources()
        for name in imported(tree)
        if (name.startswith("mixtura.platform.cli") and not path.startswith("platform/cli/"))
        or (
            name.startswith("mixtura.platform.orchestration")
            and not path.startswith(("platform/orchestration/", "platform/cli/"))
        )
    ]
    assert not wrong


def test_platform_is_never_a_package_of_its_own() -> None:
    assert not (REPOSITORY / "platform/__init__.py").exists()


@pytest.mark.parametrize("folder", [".", "src", "platform"])
def test_import_platform_is_the_standard_library_from_here(folder: str) -> None:
    code = "import platform; print(platform.system(), platform.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / folder, capture_output=True, text=True, check=True
    )
    assert str(REPOSITORY / "platform") not in result.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_import_platform_is_the_standard_library_on_a_ray_worker(ray_cluster: None) -> None:
    import ray

    def look() -> tuple[str, str]:
        import platform

        import mixtura.platform.errors

        assert platform.system()
        return str(platform.__file__), str(mixtura.platform.errors.__file__)

    standard, ours = ray.get(ray.remote(num_cpus=0.1)(look).remote())
    assert not Path(standard).resolve().is_relative_to(REPOSITORY)
    assert Path(ours).resolve() == REPOSITORY / "platform/errors.py"


def test_no_module_is_loaded_under_two_names() -> None:
    for path, _ in sources():
        importlib.import_module(".".join(("mixtura", *Path(path).with_suffix("").parts)).removesuffix(".__init__"))
    seen: dict[str, str] = {}
    twice = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name.startswith("tests") or not Path(file).resolve().is_relative_to(REPOSITORY):
            continue
        real = str(Path(file).resolve())
        if "/.venv/" in real or "/tests/" in real:
            continue
        if seen.setdefault(real, name) != name:
            twice.append(f"{real} is {seen[real]} and {name}")
    assert not twice


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['mixtura', '--help']\n"
        "from mixtura.platform.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'deepspeed', 'mlflow', 'transformers', 'pyarrow', 'pandas', 'numpy')"
        " if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip().endswith("[]"), result.stdout[-300:]
