"""The project's own files agree with each other."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import tomli
import yaml

import fedinit
from tests.support.source import nodes

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_one_version():
    """Flower reads pyproject.toml itself, where it must be written out."""
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert fedinit.__version__ == version, "install again: pip install -e ."
    assert citation["version"] == version and f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_is_of_this_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["title"] == PROJECT["project"]["name"] and citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "authors"} <= citation.keys()
    assert citation["keywords"] == PROJECT["project"]["keywords"]


def test_types_are_shipped():
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} - {"conf"}
    assert packages == {"fedinit", "strategies", "clients"}
    assert all((ROOT / package / "py.typed").is_file() for package in packages)
    assert {"py.typed", "*.pyi"} <= set(PROJECT["tool"]["setuptools"]["package-data"]["*"])


def test_the_checks_of_a_commit_are_those_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"ruff check .", "ruff format --check .", "pyright"} <= set(ci)
    assert [" ".join(hook["entry"].split()[:2]) for hook in hooks] == ["ruff check", "ruff format", "pyright"]
    pins = [
        need for need in PROJECT["project"]["optional-dependencies"]["test"] if need.startswith(("ruff", "pyright"))
    ]
    assert len(pins) == 2 and all("==" in pin for pin in pins)


# What is imported by another name than it is installed by.
NAMES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "hydra": "hydra-core",
    "tomli_w": "tomli-w",
    "mlflow": "mlflow-skinny",
    "grpc": "grpcio",
}


def declared(needs: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", need)[0].lower().replace("_", "-") for need in needs}


def test_what_is_imported_is_declared():
    """Another package's dependency may go without a word."""
    extras = PROJECT["project"]["optional-dependencies"]
    beside = [need for name in extras.keys() - {"test"} for need in extras[name]]
    known = declared(PROJECT["project"]["dependencies"]) | declared(beside)
    ours = {"fedinit", "strategies", "clients", "run_sim"}
    for path in [*ROOT.glob("run_*.py"), *(p for name in sorted(ours) for p in (ROOT / name).rglob("*.py"))]:
        for node in nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.partition(".")[0] for name in names} - ours - {*sys.stdlib_module_names}:
                assert NAMES.get(name, name).lower().replace("_", "-") in known, f"{path}: {name}"


def test_the_constraints_are_versions_of_what_is_needed_and_name_no_place():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.!]*", line) for line in lines), "a package and a version a line"
    assert declared(PROJECT["project"]["dependencies"]) <= pins.keys()


def test_the_page_of_keys_is_what_conf_says():
    spec = importlib.util.spec_from_file_location("keys_table", ROOT / "scripts/keys_table.py")
    assert spec is not None and spec.loader is not None
    keys_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keys_table)
    page = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
    assert page == keys_table.page(), "python scripts/keys_table.py > docs/keys.md"
    assert not re.findall(r"^(.*\|  \|)$", page, re.MULTILINE), "a key without a meaning"
    assert "| `gate.max_weight` | `3` | of a client, in medians of the round's weights |" in page


def test_every_page_is_in_the_sites_menu():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w-]+\.md", str(nav)))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_errors_that_are_explained_are_those_that_are_raised():
    """Every piece of a quoted line, between what differs, stands in a string of the source."""
    names = ("fedinit", "strategies", "clients")
    source = [node for name in names for path in (ROOT / name).rglob("*.py") for node in nodes(path)]
    said = " ".join(node.value for node in source if isinstance(node, ast.Constant) and isinstance(node.value, str))
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    pieces = [piece.strip(" :;,()") for row in rows for piece in row.split("…")]
    assert len(rows) >= 10 and not [piece for piece in pieces if piece not in said]
    assert "no such error" not in said  # the control
