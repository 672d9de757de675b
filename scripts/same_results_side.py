"""One side of scripts/same_results.py: ``python scripts/same_results_side.py CHECKOUT``, with cases as JSON lines on
stdin, runs them one after the other with the code of the checkout. On stdout it writes, for each, a JSON line of its
name, its result and the seconds of one core it took.

A result is what a run leaves in its folder, nested by file, or {"error": why}. Runs are driven by ``run_sim.main``
alone, but for those of sites, so that code whose modules have moved is run in the same way as before.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import json
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

LINE = re.compile(r" \(\w+, line \d+\)")  # of the code that a client's error came from
IMAGES = "{images}"

Result = dict[str, Any]
Main = Callable[[Sequence[str]], int]  # run_sim.main


class Failed(Exception):
    """A case has no result."""


class Refused(Failed):
    """The words are none that this checkout takes."""


def work(checkout: Path) -> None:
    """Run the cases on stdin. Raises SystemExit where other code than the checkout's would be run."""
    sys.path.insert(0, str(checkout))
    import torch

    torch.set_num_threads(1)
    run_sim = importlib.import_module("run_sim")
    if Path(run_sim.__file__).parent != checkout:
        raise SystemExit(f"{run_sim.__file__} is imported, which is not in {checkout}")
    told = sys.stdout
    for line in sys.stdin:
        case, began = json.loads(line), time.process_time()
        found = result(run_sim.main, case)
        print(json.dumps([case["name"], found, time.process_time() - began]), file=told, flush=True)


def result(main: Main, case: Mapping[str, Any]) -> Result:
    """All that a case computes, or the error it ends in."""
    how = {"run": run, "resume": resume, "sites": sites}[case["how"]]
    words, otherwise = case["words"], case["otherwise"]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        try:
            try:
                return how(main, filled(words, root), root / "out")
            except Refused:
                if otherwise == words:
                    raise
                return how(main, filled(otherwise, root), root / "otherwise")
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what this case ends in)
            said = str(error) if isinstance(error, Failed) else " ".join(traceback.format_exception_only(error))
            return {"error": said.strip().replace(place, "")}


def filled(words: Sequence[str], root: Path) -> list[str]:
    """The words with the images that they ask for, drawn under root/images: two domains of three classes."""
    folder = root / "images"
    if any(IMAGES in word for word in words) and not folder.exists():
        import numpy as np
        from PIL import Image

        draw = np.random.default_rng(0)
        for name in (f"{d}/{c}/{i}.png" for d in ("left", "right") for c in "abc" for i in range(20)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    return [word.replace(IMAGES, str(folder)) for word in words]


def run(main: Main, words: Sequence[str], root: Path) -> Result:
    """A whole run by the command line, and what it leaves."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([*words, f"output_dir={root}"])
    if code != 0:
        last = (said.getvalue().strip().splitlines() or [""])[-1]
        raise (Refused if code == 2 else Failed)(f"exit code {code}: {last}")
    return left_in(folder_in(root))


def resume(main: Main, words: Sequence[str], root: Path) -> Result:
    """The same words again on a folder that looks as if the run had been stopped before its last checkpoint."""
    run(main, words, root)
    folder = folder_in(root)
    for place in {path.parent for path in folder.rglob("round-*")}:
        shutil.rmtree(max(place.glob("round-*")))
    shutil.rmtree(folder / "adapter")
    for name in ("summary.json", "DONE.json"):
        (folder / name).unlink()
    found = run(main, words, root)
    if {"kind": "resumed", "round": 1} not in found["ledger"]:
        raise Failed("the run did not go on from the checkpoint of round 1")
    return found


def sites(main: Main, words: Sequence[str], root: Path) -> Result:
    """Sites whose messages the ClientApp answers one by one, each with its own Context."""
    compose_config = found_in("compose_config", "fedinit.compose", "fedinit.config.compose")
    federate = found_in("federate", "strategies.federation", "strategies.server.federation")
    grid_class = found_in("LocalGrid", "fedinit.engines.local", "fedinit.transport.local")
    observer = found_in("Observer", "fedinit.metrics", "fedinit.runs.observer")
    to_run_config = found_in("to_run_config", "fedinit.config.flower")
    site_class, app = found_in("Site", "clients.site"), found_in("app", "clients.client_app")
    events: list[Any] = []

    class Ledger(observer):
        def event(self, kind: str, facts: Mapping[str, Any]) -> None:
            events.append({"kind": kind, **facts})

    try:
        site = site_class(compose_config(words))
    except ValueError as error:
        raise Refused(str(error)) from error
    grid = grid_class(
        lambda deliveries: [app(message, context) for message, context in deliveries],
        len(site.partitions),
        run_config=to_run_config(site.config),
    )
    # What a site draws from a key of its own, the images that a statistic is over, is the same ones on both sides.
    with mock.patch("secrets.token_hex", lambda size: "00" * size):
        outcome = federate(site.config, grid, site.backbone, observers=[Ledger()])
    tensors = found_in("to_tensors", "fedinit.wire")(outcome.aggregate.layers, outcome.aggregate.head)
    tensors |= {f"offset {name}": tensor for name, tensor in outcome.offset.items()}
    held = {name: digest(tensors[name]) for name in sorted(tensors)}
    return {"summary": outcome.summary(), "ledger": read_ledger(map(json.dumps, events)), "tensors": held}


def found_in(name: str, *modules: str) -> Any:
    """`name` from the first of the modules that is there: what has moved is found where it was and where it is."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError):
            return getattr(importlib.import_module(module), name)
    raise Failed(f"{name}: there is no module {' or '.join(modules)}")


# -- reading -------------------------------------------------------------------------------------------------------


def folder_in(root: Path) -> Path:
    """The folder of the one run that was written."""
    (summary,) = root.rglob("summary.json")
    return summary.parent


def left_in(folder: Path) -> Result:
    """All that a finished run has computed, by file."""
    from safetensors import safe_open

    found: Result = {"summary": json.loads((folder / "summary.json").read_text())}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            columns, *rows = csv.reader(file)
        found[path.name] = [dict(zip(columns, row, strict=True)) for row in rows]
        found[f"columns of {path.name}"] = ",".join(columns)
    found["ledger"] = read_ledger((folder / "ledger.jsonl").read_text().replace(str(folder), "").splitlines())
    for path in sorted((folder / "adapter").rglob("*.*")):  # of a personal method one folder a client
        name = path.relative_to(folder / "adapter").as_posix()
        if path.suffix == ".json":
            found[name] = json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found[name] = {key: digest(file.get_tensor(key)) for key in sorted(file.keys())}
    return found


def read_ledger(lines: Any) -> list[Any]:
    """Its events but for those that say on what the run computed, of which it is no function."""
    events = [json.loads(LINE.sub("", line)) for line in lines]
    return [event for event in events if event.get("kind") != "engine"]


def digest(tensor: Any) -> str:
    """dtype, shape and the sha256 of the bytes, of which sixteen digits."""
    shape = "x".join(map(str, tensor.shape))
    data = tensor.detach().cpu().contiguous().flatten().numpy().tobytes()
    return f"{tensor.dtype} {shape} {hashlib.sha256(data).hexdigest()[:16]}"


if __name__ == "__main__":
    work(Path(sys.argv[1]))
