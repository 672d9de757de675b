"""docs/examples.md, added to a copy of the project and run: ``pytest -m slow tests/test_examples.py``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^(At the end of )?`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)^```$", re.M | re.S)
RUN = re.search(r"^python run_sim\.py (.*)$", PAGE, re.M)


def added_to(copy: Path) -> None:
    """The page's files and lines, in a copy of the project."""
    for folder in ("fedinit", "strategies", "clients", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_sim.py", copy)
    for at_the_end, name, text in BLOCK.findall(PAGE):
        path = copy / name
        assert path.exists() == bool(at_the_end), name
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n\n{text}" if at_the_end else text)


def test_every_block_is_seen_and_every_choice_has_its_options():
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python") + PAGE.count("```yaml") == 36
    assert RUN is not None
    for word in RUN[1].split():
        group, _, choice = word.partition("=")
        (options,) = [text for _, name, text in blocks if name == f"conf/{group}/{choice}.yaml"]
        assert choice in yaml.safe_load(options).values()


@pytest.mark.slow
def test_they_run_together(tmp_path):
    assert RUN is not None
    added_to(tmp_path)
    words = [*RUN[1].split(), "rounds=2", "evaluation.head_alone=false", "output_dir=outputs"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "run_sim.py", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = (tmp_path / "outputs").rglob("summary.json")
    assert json.loads(summary.read_text())["clients"] == 4
    assert "data: 240 images, 3 classes, 2 domains" in done.stdout
    figures = (summary.parent / "metrics.prom").read_text()
    assert 'fedinit_figure{name="round"} 2\n' in figures and 'name="accuracy/dark"' in figures
    ledger = [json.loads(line) for line in (summary.parent / "ledger.jsonl").read_text().splitlines()]
    assert not [line for line in ledger if line["kind"] == "client_failed"], ledger
