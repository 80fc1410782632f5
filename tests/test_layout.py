"""The walls of the house: who may import whom, what may be loaded early, and names that say nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "angio_ray"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# Top-level module or package -> the others that it may know. The line of travel:
# clip <- storage, sampling <- dicom, models <- scoring, training <- cli
MAY_IMPORT: dict[str, set[str]] = {
    "clip": set(),
    "storage": {"clip"},
    "sampling": {"clip"},
    "views": set(),
    "pseudonyms": {"clip", "storage"},
    "dicom": {"clip", "sampling"},
    "models": {"clip", "sampling", "views"},
    "tables": {"clip", "views"},
    "phantom": {"clip", "sampling", "views", "storage", "dicom"},
    "evaluation": {"clip", "tables"},
    "scoring": {"clip", "storage", "sampling", "views", "pseudonyms", "dicom", "models", "tables"},
    "training": {
        "clip", "storage", "sampling", "views", "pseudonyms", "dicom", "models", "tables", "phantom", "evaluation", "scoring",
    },
    "judging": {
        "clip", "storage", "sampling", "views", "pseudonyms", "dicom", "models", "tables", "evaluation", "training", "scoring",
    },
}
# What starts the rest: nothing inside imports these, and they may know all.
ENTRIES = {"cli", "demo", "doctor"}

ONLY_IN: dict[str, set[str]] = {
    "pydicom": {"dicom", "phantom"},
    "ray": {"scoring", "training"},
    "deltalake": {"tables"},
    "duckdb": {"tables"},
    "s3fs": {"storage"},
    "botocore": {"storage"},
    "torchvision": {"models", "training"},
    "monai": {"models", "evaluation", "training"},
    "pytorchvideo": {"models"},
}


def part_of(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a file, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name the whole path"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    faults = []
    for line, name in imports(path):
        first, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if first == "angio_ray":
            known = part in ENTRIES or other in (part, "__version__") or other in MAY_IMPORT.get(part, set())
            if not known:
                faults.append(f"line {line}: {part} knows {other}")
        elif part not in ONLY_IN.get(first, {part}):
            faults.append(f"line {line}: {first} is for {', '.join(sorted(ONLY_IN[first]))}")
    assert faults == []


def test_every_part_has_its_place_in_the_order() -> None:
    parts = {part_of(path) for path in MODULES} - {"__init__"}
    assert parts == set(MAY_IMPORT) | ENTRIES
    for part, known in MAY_IMPORT.items():
        for other in known:
            assert part not in MAY_IMPORT[other], f"{part} and {other} know one another"


def test_models_know_no_tables_of_rows() -> None:
    faults = [
        (path.name, name)
        for path in MODULES
        if part_of(path) == "models"
        for _, name in imports(path)
        if name.split(".")[0] in ("pyarrow", "pandas")
    ]
    assert faults == []


def test_no_name_says_nothing() -> None:
    empty = {"utils", "util", "base", "common", "helpers", "helper", "misc", "core"}
    root = PACKAGE.parent
    python = [path for folder in ("angio_ray", "jobs", "tests", "benchmarks") for path in (root / folder).rglob("*.py")]
    names = {part.removesuffix(".py") for path in python for part in path.relative_to(root).parts}
    assert names & empty == set()


def test_every_module_says_what_it_does() -> None:
    missing = [str(p.relative_to(PACKAGE)) for p in MODULES if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert missing == []


def test_readme_names_every_part() -> None:
    tree = (PACKAGE.parent / "README.md").read_text("utf-8").split("## The line of travel")[1].split("\n## ")[0]
    parts = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    parts += [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    assert len(parts) > 10
    assert [name for name in parts if name not in tree] == []


def test_threads_of_torch_sleep_soon_unless_somebody_says_otherwise() -> None:
    def told(**environment: str) -> list[str]:
        inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        done = subprocess.run(
            [sys.executable, "-c", "import angio_ray, torch"], capture_output=True, text=True, timeout=120, check=True,
            env={**inherited, "OMP_DISPLAY_ENV": "verbose", **environment},
        )
        return [line.strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]

    assert told() == ["GOMP_SPINCOUNT = '1000'"]
    assert told(GOMP_SPINCOUNT="77") == ["GOMP_SPINCOUNT = '77'"]


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after `code`, and did not have before."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


def test_the_package_imports_nothing() -> None:
    assert loaded("import angio_ray") == {"angio_ray"}


@pytest.mark.parametrize("module", ["clip", "sampling", "scoring.config", "tables.schema", "models"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = {"ray", "torch", "pydicom", "deltalake", "duckdb", "s3fs", "botocore", "openvino", "matplotlib"}
    assert loaded(f"import angio_ray.{module}") & heavy == set()


def test_help_imports_nothing_heavy() -> None:
    code = "from angio_ray.cli import main\nfor words in ([], ['score'], ['compare']): main([*words, '--help'])"
    heavy = {"ray", "torch", "numpy", "pyarrow", "pydicom", "deltalake", "duckdb", "s3fs", "matplotlib", "cv2"}
    assert loaded(code) & heavy == set()


def test_what_decodes_untrusted_bytes_stays_small() -> None:
    found = loaded("import angio_ray.dicom.decoding")
    assert found & {"ray", "torch", "deltalake", "duckdb", "s3fs", "botocore", "pyarrow", "matplotlib"} == set()
