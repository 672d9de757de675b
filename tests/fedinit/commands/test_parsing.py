"""What the parsers of the commands have in common."""

from __future__ import annotations

import pytest

from fedinit import cli


@pytest.mark.parametrize(
    "words",
    [
        "report . --output -",
        "compare . --report -",
        "export . --format timm --output -",
        "data prepare pacs . --to -",
        "deploy init -",
        "deploy app -",
    ],
)
def test_a_dash_is_no_place_for_what_is_no_text(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    said = capsys.readouterr()
    assert not said.out and "-: this is not written to standard output" in said.err and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
