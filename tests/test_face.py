"""What a notebook has: a run from words, its folder as an object, a method on plain tensors."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fedinit
import run_sim
from clients.site import Site
from fedinit.data.dataset import Dataset
from fedinit.state.checkpoint import Checkpoints
from strategies import AGGREGATORS
from tests.support.small import WORDS

ROOT = Path(__file__).resolve().parent.parent
SHORT = (*WORDS, "client.max_steps=2", "client.lr=0.5", "engine.lanes=1")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> fedinit.Run:
    """Two rounds of LoRA-FAIR with a head alone beside it."""
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('done')}", "evaluation.head_alone=true")


# -- the face ------------------------------------------------------------------------------------------------------


def test_importing_fedinit_imports_nothing_heavy():
    code = """
import sys
import fedinit
print(sorted({"torch", "flwr", "timm", "numpy", "hydra", "rich", "wandb"} & set(sys.modules)), dir(fedinit))
fedinit.InputError, fedinit.__version__
print("torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = ["InputError", "Run", "RunFailed", "__version__", "aggregate", "load", "run"]
    assert told == f"[] {names}\nFalse\n"


@pytest.mark.parametrize("command", ["deploy", "run", "sweep", "watch"])
def test_a_commands_own_module_imports_nothing_heavy(command):
    """So that `--help` and a wrong word are answered at once."""
    heavy = ("torch", "timm", "numpy", "hydra", "flwr", "ray", "wandb")
    code = f"import sys, fedinit.commands.{command}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_name_of_the_face_is_where_it_is_said_to_be_and_has_a_type():
    stub = ast.parse((ROOT / "fedinit" / "__init__.pyi").read_text())
    typed = {n.names[0].name: n.module for n in stub.body if isinstance(n, ast.ImportFrom)}
    assert typed == fedinit.FACE
    for name, module in fedinit.FACE.items():
        assert getattr(fedinit, name) is getattr(importlib.import_module(module), name)
        assert getattr(fedinit, name).__doc__
    with pytest.raises(AttributeError, match="module 'fedinit' has no attribute 'federate'"):
        _ = fedinit.federate


def test_run_and_the_package_of_runs_do_not_get_in_each_others_way():
    import fedinit.runs.folder

    assert fedinit.run is run_sim.run and fedinit.runs.folder.place


# -- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_is_quiet_and_says_what_it_is(done, capsys):
    again = fedinit.run(*SHORT, f"output_dir={done.folder.parents[1]}", "evaluation.head_alone=true")
    assert again.folder == done.folder and again.summary == done.summary, "a run that is done is read, not run again"
    assert capsys.readouterr() == ("", "")
    figure = f"accuracy, % {done.summary['accuracy']:.1f}"
    assert repr(done) == f"Run('{done.folder}'): lora_fair on digits, vit_tiny_patch16_224, 2 rounds, {figure}"
    fedinit.run(*SHORT, f"output_dir={done.folder.parents[1]}", "evaluation.head_alone=true", quiet=False)
    printed = capsys.readouterr().out
    assert "this run is done" in printed and "│ lora_fair" in printed


def test_the_table_is_the_one_that_the_command_prints(done, capsys):
    words = [*SHORT, f"output_dir={done.folder.parents[1]}", "evaluation.head_alone=true"]
    assert run_sim.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    table = done.table()
    rows = [line for line in table.splitlines() if line.startswith(("│", "2 rounds", "run folder"))]
    assert len(rows) == 4 and set(rows) <= set(printed)
    assert repr(table) == str(table) and not re.search("\x1b", table)


def test_metrics_and_clients_are_the_tables_of_the_folder(done):
    assert done.metrics["round"].tolist() == [1, 2] and done.metrics["bytes_up"].dtype == np.int64
    assert done.metrics["accuracy"][-1] == done.summary["accuracy"]
    assert [done.metrics[f"accuracy_{d}"][-1] for d in done.summary["accuracy_by_domain"]] == list(
        done.summary["accuracy_by_domain"].values()
    )
    assert done.clients["client"].tolist() == [0, 1, 2] * 2 and (done.clients["train_loss"] > 0).all()
    assert done.class_names == tuple("0123456789") and done.config.rounds == 2 and done.done


def test_a_score_that_was_not_measured_is_nan(tmp_path):
    run = fedinit.run(*SHORT, f"output_dir={tmp_path}", "evaluation.every=2")
    scores = run.metrics["accuracy"]
    assert np.isnan(scores[0]) and scores[1] == run.summary["accuracy"]


@pytest.mark.parametrize("words", [("-m", "seed=0,1"), ("--multirun",), ("rounds=0",), ("strategy=lorafair",)])
def test_wrong_words_are_an_input_error_of_one_line(words, tmp_path):
    with pytest.raises(fedinit.InputError) as refused:
        fedinit.run(*words, f"output_dir={tmp_path / 'out'}")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


# -- a folder ------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_as_the_run_that_it_is(done):
    loaded = fedinit.load(str(done.folder))
    assert repr(loaded) == repr(done) and loaded.summary == done.summary and loaded.config == done.config


def test_a_folder_that_is_no_run(tmp_path):
    for folder, why in (
        (tmp_path, "not the folder of a run, it has no config.yaml"),
        (tmp_path / "absent", "no such folder"),
    ):
        with pytest.raises(fedinit.InputError) as refused:
            fedinit.load(folder)
        assert str(refused.value) == f"{folder}: {why}; give the folder of a run, as fedinit run prints it"


def test_an_unfinished_run_has_what_it_came_to(tmp_path, monkeypatch):
    """Stopped after its first round, in the midst of a row of its tables."""
    saved = Checkpoints.save

    def stop_after_one(self, round, states):
        saved(self, round, states)
        if round == 1:
            raise KeyboardInterrupt

    words = (*SHORT, f"output_dir={tmp_path}")
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            fedinit.run(*words)
    (folder,) = (tmp_path / "digits").iterdir()
    with open(folder / "metrics.csv", "a") as table:
        table.write("2,0.1")
    run = fedinit.load(folder)
    assert not run.done and run.metrics["round"].tolist() == [1] and run.clients["client"].tolist() == [0, 1, 2]
    assert repr(run) == f"Run('{folder}'): lora_fair on digits, vit_tiny_patch16_224, not done"
    for use in (lambda: run.summary, run.table, run.model, lambda: run.class_names):
        with pytest.raises(fedinit.InputError) as refused:
            use()
        told = f"{folder}: this run is not done, it came to round 1 of 2; fedinit run resume={folder} goes on with it"
        assert str(refused.value) == told
    assert fedinit.run(f"resume={folder}").done and run.metrics["round"].tolist() == [1, 2]
    (folder / "metrics.csv").unlink()
    assert run.metrics["round"].tolist() == [1, 2], "metrics.jsonl says the same"
    (folder / "metrics.jsonl").unlink()
    assert run.metrics == {}


# -- its model -----------------------------------------------------------------------------------------------------


def accuracies(run: fedinit.Run, data: Dataset) -> dict[str, float]:
    """Percent of the test images that the run's model puts into their class, by domain."""
    model = run.model()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    made = {}
    for index, name in enumerate(data.domain_names):
        rows = (data.test & (data.domains == index)).nonzero().flatten()
        with torch.inference_mode():
            guessed = torch.cat([model(data.images[part]).argmax(-1) for part in rows.split(128)])
        made[name] = 100 * int((guessed == data.labels[rows]).sum()) / len(rows)
    return made


@pytest.mark.slow
def test_the_model_of_the_embedded_digits_run_scores_what_its_table_says(tmp_path):
    words = ("rounds=1", "client.max_steps=4", "evaluation.head_alone=false", "logger=none", "head=ridge")
    run = fedinit.run(*words, "data.domains=[plain,rotated]", f"output_dir={tmp_path}")
    assert run.summary["accuracy"] > 40, "no chance hit"
    assert accuracies(run, Site(run.config).data) == run.summary["accuracy_by_domain"]


@pytest.mark.parametrize(
    "words",
    [
        ("strategy=flora",),
        ("strategy=fedex_lora", "init=pissa", "reinit=pissa"),
        pytest.param(("strategy=fed_sb", "init=lora_xs"), marks=pytest.mark.slow),
        ("adapter=dora",),
        ("strategy=fedex_lora", "adapter=vera", "init=vera"),
        pytest.param(
            ("model=glyph_mixer", "model.checkpoint=null", "model.kwargs.num_blocks=2"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda words: " ".join(words),
)
def test_every_kind_of_adapter_and_what_was_merged_into_the_base_is_in_the_model(words, tmp_path):
    words = [w for w in SHORT if not (words[0] == "model=glyph_mixer" and w.startswith("model."))] + list(words)
    run = fedinit.run(*words, f"output_dir={tmp_path}")
    data = Site(run.config).data
    assert accuracies(run, data) == run.summary["accuracy_by_domain"]
    # The control: without what was trained the model says something else.
    images = data.images[data.test.nonzero().flatten()[:32]]
    model, bare = run.model(), Site(run.config).backbone
    logits = model(images)
    assert logits.shape == (32, 10)
    normal = bare.input.normalise(images, torch.device("cpu"))
    assert not torch.allclose(model.get_classifier()(bare.module(normal)), logits, atol=1e-3)
    torch.testing.assert_close(model(normal), logits)


def test_a_model_without_a_head_is_whole_too(tmp_path):
    """The matrix that was to be recovered: its error over the test measurements is the table's."""
    words = ("experiment=matrix_sensing", "logger=none", "rounds=2", "client.max_steps=5", f"output_dir={tmp_path}")
    run = fedinit.run(*words)
    data = Site(run.config).data
    with torch.inference_mode():
        outputs = run.model()(data.images[data.test]).double()
    targets = data.labels[data.test].double()
    error = ((outputs - targets).square().sum() / targets.square().sum()).sqrt()
    assert float(error) == pytest.approx(run.summary["recovery_error"], rel=1e-6)


# -- a method on plain tensors -------------------------------------------------------------------------------------


def layer(clients: int = 2, same: str = "", dtype: torch.dtype = torch.float64, seed: int = 0):
    """Factors of rank 4 of a 7×6 layer; `same`: the factor that all clients share."""
    draw = torch.Generator().manual_seed(seed)
    A, B = ([torch.randn(*s, generator=draw, dtype=dtype) for _ in range(clients)] for s in ((4, 6), (7, 4)))
    return ([A[0]] * clients if "A" in same else A), ([B[0]] * clients if "B" in same else B)


def ideal(A, B, weights) -> torch.Tensor:
    """Σ p_i B_i A_i."""
    return sum(w / sum(weights) * (b @ a) for a, b, w in zip(A, B, weights, strict=True))


def test_lora_fair_in_one_line():
    (A1, A2), (B1, B2) = layer()
    A, B, residual = fedinit.aggregate("lora_fair", A=[A1, A2], B=[B1, B2], weights=[3, 1], lam=0.0)
    torch.testing.assert_close(A, 0.75 * A1 + 0.25 * A2)
    # At λ = 0, B solves least squares for the ideal update in the row space of Ā.
    wanted = torch.linalg.lstsq(A.T, ideal([A1, A2], [B1, B2], [3, 1]).T).solution.T
    torch.testing.assert_close(B, wanted)
    assert residual is None
    averaged = fedinit.aggregate("fedit", [A1, A2], [B1, B2], [3, 1])
    torch.testing.assert_close(averaged.B, 0.75 * B1 + 0.25 * B2)
    assert not torch.allclose(averaged.B, B)


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_exact_methods_give_the_ideal_update_residual_included(method):
    A, B = layer(3)
    made = fedinit.aggregate(method, A, B, [1, 2, 5])
    torch.testing.assert_close(made.delta, ideal(A, B, [1, 2, 5]))
    assert (made.residual is None) == (method == "flora")


@pytest.mark.parametrize("method", sorted(AGGREGATORS))
def test_every_method_gives_one_clients_product_back(method):
    A, B = layer(1)
    core = torch.diag(torch.arange(1.0, 5.0, dtype=torch.float64))
    trained = AGGREGATORS[method].cores
    options = {"threshold": 1e-9} if method == "spectral" else {"energy": 1.0} if method == "florist" else {}
    made = fedinit.aggregate(method, A, B, R=[core] if trained else None, **options)
    torch.testing.assert_close(made.delta, (B[0] @ core if trained else B[0]) @ A[0], rtol=1e-4, atol=1e-4)


def test_arrays_and_lists_do_and_the_type_of_a_is_kept():
    A, B = layer(dtype=torch.float32)
    tensors = fedinit.aggregate("lora_fair", A, B)
    arrays = fedinit.aggregate("lora_fair", [a.numpy() for a in A], [b.tolist() for b in B], [5, 5])
    assert tensors.A.dtype == torch.float32 and torch.equal(tensors.A, arrays.A) and torch.equal(tensors.B, arrays.B)
    whole = fedinit.aggregate("fedit", [[[1, 2]], [[3, 4]]], [[[1], [0]], [[0], [1]]])
    assert whole.A.tolist() == [[2.0, 3.0]] and whole.B.tolist() == [[0.5], [0.5]]


def test_what_clients_started_from_is_the_last_components_of_a_lower_round():
    """Clients of rank 2 of a layer of rank 4: the global factors stay of rank 4."""
    A, B = layer()
    low = fedinit.aggregate("hetlora", [a[:2] for a in A], [b[:, :2] for b in B], start=(A[0], B[0]))
    assert low.A.shape == (4, 6) and torch.equal(low.A[2:], A[0][2:])
    assert fedinit.aggregate("hetlora", [a[:2] for a in A], [b[:, :2] for b in B]).A.shape == (2, 6)


A, B = ([t.tolist() for t in ts] for ts in layer())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"method": "lorafair"}, "strategy=lorafair: no such choice (did you mean 'lora_fair'?)"),
        ({"lam": -1.0}, "strategy.lam=-1.0: expected a number in [0, 1e+100]"),
        ({"lamb": 1.0}, "strategy.lamb: no such key (did you mean 'lam'?)"),
        ({"A": A[:1]}, "got 1 in A, 2 in B"),
        ({"A": [], "B": []}, "expected one or more clients"),
        ({"weights": [1]}, "2 in A, 2 in B, 1 in weights"),
        ({"weights": [1, 0]}, "weights[1]=0: expected a finite number above zero"),
        ({"weights": ["a", 1]}, "weights[0]='a': expected a finite number above zero"),
        ({"A": None}, "A=None: expected a list, one entry a client"),
        ({"A": iter(A)}, "expected a list, one entry a client"),
        ({"A": [np.array(A[0]) * 1j, A[1]]}, "A[0]: is complex, expected real numbers"),
        ({"A": [[[]] * 4] * 2}, "A[0]: has shape (4, 0), which holds nothing"),
        ({"A": [np.array(A[0]) * 1e160, A[1]]}, "expected one that float32 holds"),
        ({"A": [np.array(A[0]) * 1e-160, A[1]]}, "expected one that float32 holds"),
        (
            {"method": "frlora", "start": (np.ones((4, 9)), np.ones((7, 4)))},
            "start: a map from 9 to 7, the clients' are",
        ),
        ({"start": (A[0], B[0], A[0])}, "expected the pair (A, B)"),
        ({"round": 0}, "round=0: expected a whole number, 1 for the first"),
        ({"round": "x"}, "round='x': expected a whole number"),
        ({"method": "lora_a2", "round": 3}, "lora_a2: neither factor is the same on all clients"),
        ({"weights": [float("nan"), 1]}, "weights[0]=nan: expected a finite number above zero"),
        ({"A": [A[0], A[1][0]]}, "A[1]: has shape (6,), expected (r, k)"),
        ({"A": [A[0], A[1][:3]]}, "A[1] and B[1]: factors do not chain"),
        ({"A": [A[0], [row[:5] for row in A[1]]]}, "client 1, layer W: a (7, 5) product, expected (7, 6)"),
        ({"A": [A[0], [[float("inf")] * 6] * 4]}, "A[1]: holds NaN or infinity"),
        ({"A": [A[0], "no"]}, "A[1]: no tensor ("),
        ({"B": [B[0], [[1.0], [1.0, 2.0]]]}, "B[1]: no tensor ("),
        ({"method": "ffa_lora"}, "ffa_lora: a client's A is not the frozen A that all clients share"),
        ({"method": "fed_sb"}, "fed_sb: a client's A and B are not the frozen ones that all clients share"),
        ({"method": "ravan", "heads": 3, "R": [np.eye(4)] * 2}, "strategy.heads=3: does not divide the rank 4"),
    ],
)
def test_wrong_tensors_are_told_in_one_line(words, expected):
    with pytest.raises(fedinit.InputError) as refused:
        fedinit.aggregate(**({"method": "lora_fair", "A": A, "B": B} | words))
    assert expected in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [(3,), (None,), (b"rounds=1",), (["strategy=fedit"],)])
def test_what_is_no_word_is_told_in_one_line(words):
    with pytest.raises(fedinit.InputError, match="run: expected words, one an argument"):
        fedinit.run(*words)
