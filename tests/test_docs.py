"""What the documents say is what the code has: columns, reasons, the file tree."""

import re
from pathlib import Path

from angio_ray.clip import Reason
from angio_ray.tables.schema import declaration, document

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_docs_tables_are_made_from_the_schemas():
    assert (ROOT / "docs" / "tables.md").read_text() == document()


def test_reasons_are_the_same_in_code_schemas_and_readme():
    codes = [str(reason) for reason in Reason]
    assert list(declaration("scores")["reasons"]) == codes
    section = README.split("An object is `scored`, `gated` or `rejected`")[1].split("## ")[0]
    assert re.findall(r"^\| `([a-z_0-9]+)` \|", section, re.MULTILINE) == codes


def test_readme_tree_names_every_module():
    tree = README.split("## The line of travel")[1].split("## ")[0]
    modules = [p for p in (ROOT / "angio_ray").rglob("*.py") if p.name != "__init__.py"]
    assert len(modules) > 30
    assert [p.name for p in modules if p.name not in tree] == []


def test_readme_has_no_gap_left():
    assert "@@" not in README
