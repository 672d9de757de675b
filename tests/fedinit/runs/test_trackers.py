"""JSON lines beside the tables; TensorBoard and MLflow as choices; none of them stops or changes a run."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
import types

import pytest

import fedinit
import run_sim
from fedinit.runs.mlflow_tracker import SETTINGS
from fedinit.runs.tracker import group_of
from tests.support.small import WORDS

SHORT = (*WORDS, "client.max_steps=1", "engine.lanes=1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> fedinit.Run:
    return fedinit.run(*SHORT, "evaluation.every=2", f"output_dir={tmp_path_factory.mktemp('plain')}")


def test_json_lines_are_the_table(plain):
    with open(plain.folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (plain.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows) == 2 and list(lines[0]) == list(rows[0])
    for line, row in zip(lines, rows, strict=True):
        assert {k: None if v == "" else float(v) for k, v in row.items()} == line
    assert lines[0]["accuracy"] is None and lines[1]["accuracy"] == plain.summary["accuracy"]


def test_a_run_that_goes_on_keeps_the_lines_up_to_its_checkpoint(plain, tmp_path, monkeypatch):
    from fedinit.runs.folder import RunFolder

    words = [*SHORT, "evaluation.every=2", f"output_dir={tmp_path}"]
    done = RunFolder.round_done

    def stops(folder, report):
        done(folder, report)
        if report.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "round_done", stops)
        assert run_sim.main(words) == 130
    assert run_sim.main(words) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in kept] == [1, 2] and kept[1]["train_loss"] == plain.metrics["train_loss"][1]


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
@pytest.mark.parametrize("fault", ["absent", "begin", "log", "end"])
def test_a_service_that_fails_is_one_warning_and_the_run_is_the_same(
    logger, fault, plain, tmp_path, monkeypatch, capsys
):
    from fedinit.runs.mlflow_tracker import MlflowTracker
    from fedinit.runs.tensorboard_tracker import TensorboardTracker

    kind = {"tensorboard": TensorboardTracker, "mlflow": MlflowTracker}[logger]

    def fail(*_, **__):
        raise ConnectionError("the service\nat https://me:secret@there went")

    for step in ("begin", "log", "conclude", "end"):
        monkeypatch.setattr(kind, step, fail if step == fault else lambda *_: None)
    if fault == "absent":
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "mlflow", None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    assert run_sim.main([*SHORT, "evaluation.every=2", f"logger={logger}", f"output_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "secret" not in out and out.count("warning: ") == 1 and f"warning: {logger} is off for this run: " in out
    (folder,) = (tmp_path / "digits").iterdir()
    assert json.loads((folder / "summary.json").read_text())["final_hash"] == plain.summary["final_hash"]
    assert folder.name == plain.folder.name, "which service is told is no part of a run's identity"


def test_tensorboard_has_every_figure(tmp_path):
    pytest.importorskip("tensorboard", reason='needs tensorboard: pip install -e ".[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fedinit.run(*SHORT, "logger=tensorboard", f"output_dir={tmp_path}")
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    told = [e.value for e in events.Scalars("train_loss")]
    assert told == pytest.approx(run.metrics["train_loss"].tolist(), rel=1e-6)
    assert {"accuracy", "accuracy/plain", "bytes_up"} <= set(events.Tags()["scalars"])


def test_mlflow_has_every_figure_and_the_run_goes_on_there(tmp_path, monkeypatch):
    told: dict[str, list] = {"runs": [], "metrics": [], "ends": [], "files": []}

    class Client:
        def __init__(self, uri: str) -> None:
            self.uri = uri

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return name

        def create_run(self, experiment, run_name, tags):
            told["runs"].append((experiment, run_name, tags["group"]))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="an-id"))

        def log_param(self, run, name, value):
            pass

        def set_tag(self, run, name, value):
            pass

        def log_metric(self, run, name, value, step):
            told["metrics"].append((run, name, step))

        def log_artifact(self, run, file):
            told["files"].append(file)

        def set_terminated(self, run, status):
            told["ends"].append(status)

    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client))
    run = fedinit.run(*SHORT, "report=full", "logger=mlflow", f"output_dir={tmp_path}")
    assert told["runs"] == [("fedinit", run.folder.name, group_of(run.folder))] and told["ends"] == ["FINISHED"]
    assert ("an-id", "train_loss", 2) in told["metrics"] and ("an-id", "accuracy.plain", 2) in told["metrics"]
    assert told["files"] == [str(run.folder / "report.html")]


@pytest.mark.slow
def test_mlflow_itself_takes_every_figure_and_the_report(tmp_path, monkeypatch, capsys):
    """In its folders a figure "accuracy/plain" cannot be beside one called "accuracy"."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = fedinit.run(*SHORT, "report=full", "logger=mlflow", f"output_dir={tmp_path}")
    assert "warning" not in capsys.readouterr().out
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    there = client.get_run((run.folder / "mlflow-id").read_text())
    assert there.info.status == "FINISHED"
    assert there.data.metrics["accuracy"] == pytest.approx(run.summary["accuracy"])
    assert {"accuracy.plain", "train_loss", "bytes_up"} <= there.data.metrics.keys()
    assert [file.path for file in client.list_artifacts(there.info.run_id)] == ["report.html"]


@pytest.mark.slow
def test_wandb_groups_runs_of_one_configuration_and_keeps_the_report(tmp_path, monkeypatch):
    told: list = []
    made = types.SimpleNamespace(
        log=lambda values, step: None,
        summary={},
        finish=lambda: told.append("finish"),
        log_artifact=lambda artifact: told.append(artifact.files),
    )

    class Artifact:
        def __init__(self, name, type):
            self.files = []

        def add_file(self, file):
            self.files.append(file)

    def init(**about):
        told.append(about["group"])
        return made

    fake = types.SimpleNamespace(init=init, Settings=lambda **_: None, Artifact=Artifact)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    groups = []
    for seed in (0, 1):
        run = fedinit.run(
            *SHORT, "rounds=1", f"seed={seed}", "report=full", "logger=wandb_offline", f"output_dir={tmp_path}"
        )
        group, files, end = told
        assert files == [str(run.folder / "report.html")] and end == "finish"
        groups.append(group)
        told.clear()
    assert groups[0] == groups[1] == f"digits/{run.folder.name[:-3]}"


SILENT = {  # of servers: that nobody is there, that one takes the connection and says nothing
    "mlflow": ("MLFLOW_TRACKING_URI", {}),
    "wandb": ("WANDB_BASE_URL", {"WANDB_API_KEY": "0" * 40}),
}


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("logger", SILENT)
def test_a_server_that_does_not_answer_is_one_line_after_seconds(logger, answers, tmp_path):
    """mlflow itself waits for four minutes. In a process of its own, since both keep threads and settings."""
    pytest.importorskip(logger)
    variable, more = SILENT[logger]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen(50)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        words = [*SHORT, "rounds=1", "evaluation=none", "report=none", f"logger={logger}", f"output_dir={tmp_path}"]
        env = {**os.environ, **more, variable: address.replace("//", "//somebody:secret@")}
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "fedinit", "run", *words], env=env, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if logger in line]
    assert done.returncode == 0 and time.monotonic() - begun < 75, done.stderr
    assert told[0] == f"{logger}: waiting for {address}" and len(told) == 2, "one line, in a file too"
    assert told[1].startswith(f"warning: {logger} is off for this run: ") and "secret" not in done.stdout


def test_a_wait_that_a_person_set_stays(tmp_path, monkeypatch):
    told: dict[str, object] = {}

    class Client:
        def __init__(self, uri: str) -> None:
            told.update({name: os.environ[name] for name in SETTINGS}, uri=uri)
            raise ConnectionError

    def settings(**values: object) -> None:
        told.update(values)

    fake = types.SimpleNamespace(init=lambda **_: types.SimpleNamespace(), Settings=settings)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    words = (*SHORT, "rounds=1", "evaluation=none", "report=none")
    fedinit.run(*words, "logger=mlflow", f"output_dir={tmp_path / 'a'}")
    assert told["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99" and told["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    fedinit.run(*words, "logger=wandb", f"output_dir={tmp_path / 'b'}")
    assert told["init_timeout"] == 10
    del told["init_timeout"]
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "99")
    fedinit.run(*words, "logger=wandb", f"output_dir={tmp_path / 'c'}")
    assert "init_timeout" not in told
