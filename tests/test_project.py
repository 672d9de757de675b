"""The project's own files agree with each other."""

from __future__ import annotations

from pathlib import Path

import tomli
import yaml

import fedinit

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
