"""What a run exports, read by PEFT and timm and nothing of ours, scores what its table says: exactly, for every method.

It is counted anew over every client's own test images, which together are the test split.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import fedinit
from clients.cohort import Cohort
from clients.site import Site
from fedinit.factors import Factors
from fedinit.runs import export
from fedinit.runs.observer import RoundReport
from fedinit.scores import Accuracy
from fedinit.state import disk
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS
from strategies.server.federation import federate
from strategies.server.outcome import Tally
from tests.support.small import WORDS, small_config
from tests.support.state_on_disk import keeping

peft = pytest.importorskip("peft", reason='needs peft: pip install -e ".[oracle]"')

# A client a bank, as at a site: on CUDA other products round otherwise in company.
SHORT = (*WORDS, "engine.clients_per_bank=1", "client.lr=0.1", "engine.lanes=1", "head=ridge", "evaluation.every=2")
BY_CLIENTS = "evaluation=clients"
METHODS = {name: (f"strategy={name}",) for name in AGGREGATORS} | {
    "fed_sb": ("strategy=fed_sb", "init=lora_xs"),
    "fedsa_lora": ("strategy=fedsa_lora", BY_CLIENTS),
    "frlora": ("strategy=frlora", "init=pissa"),
    "ravan": ("strategy=ravan", "init=lora_xs"),
}
OTHERS = {
    "own factors over a base": ("strategy=fedsa_lora", BY_CLIENTS, "init=pissa"),
    "not all were asked": ("strategy=fedsa_lora", BY_CLIENTS, "partition.clients=6", "participation=0.34"),
    "own starts": ("strategy=fedit", "reinit=local"),
    "dora": ("strategy=fedit", "adapter=dora"),
    "dora over a base": ("strategy=fedex_lora", "adapter=dora"),
    "vera over a base": ("strategy=fedex_lora", "adapter=vera", "init=vera"),
    "mixed ranks": ("strategy=hetlora", "adapter.ranks=[2,4]"),
    "ranks by layer": ("strategy=flora", "init=eva"),
    "another scale": ("strategy=flexlora", "adapter.alpha=3"),
    "rslora": ("strategy=fedit", "adapter.scaling=rslora"),
}
QUICK = ("fedsa_lora", "flora", "lora_fair", "not all were asked")


def scored(run: fedinit.Run, site: Site, own: str = "client-{}") -> dict[str, float]:
    """Percent correct by domain, of the exported adapters, each on the test images of its client.

    own: the name of a client's folder, where it has one of its own.
    """
    data, spec, hits, images = site.data, site.backbone.input, torch.zeros(3), torch.zeros(3)
    for part in site.partitions:
        names = own.format(part.client), "client-untrained", "."
        model = read(
            next(run.folder / "adapter" / n for n in names if (run.folder / "adapter" / n).is_dir()), run, site
        )
        pixels = (data.images[part.test].float() / 255 - spec.mean[0]) / spec.std[0]
        with torch.inference_mode():
            right = model(pixels).argmax(-1) == data.labels[part.test]
        for domain in data.domains[part.test].unique().tolist():
            rows = data.domains[part.test] == domain
            hits[domain] += int(right[rows].sum())
            images[domain] += int(rows.sum())
    return {n: 100 * int(hits[i]) / int(images[i]) for i, n in enumerate(data.domain_names)}


def read(folder: Path, run: fedinit.Run, site: Site) -> nn.Module:
    """timm's model of the name that the export has, over W0, as PEFT adapts it, and the head as its classifier."""
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    classes = json.loads((folder / "classes.json").read_text())["classes"]
    model = timm.create_model(name, num_classes=len(classes), **run.config.model.kwargs)
    model.load_state_dict(site.backbone.module.state_dict(), strict=False)
    model.get_classifier().load_state_dict(load_file(folder / "head.safetensors"))
    return peft.PeftModel.from_pretrained(model, str(folder)).eval()


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in (*METHODS, *OTHERS)]
)
def test_what_peft_and_timm_read_scores_what_the_table_says(case, tmp_path):
    run = fedinit.run(*SHORT, *(METHODS | OTHERS)[case], f"output_dir={tmp_path}")
    assert scored(run, Site(run.config)) == run.summary["accuracy_by_domain"]


# -- clients with factors of their own -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def personal(tmp_path_factory) -> tuple[fedinit.Run, Site]:
    """A run of fedsa_lora, whose clients keep their B."""
    run = fedinit.run(*SHORT, *METHODS["fedsa_lora"], f"output_dir={tmp_path_factory.mktemp('personal')}")
    return run, Site(run.config)


def test_each_client_has_an_adapter_and_the_run_says_so(personal, capsys):
    run, site = personal
    assert {p.name for p in (run.folder / "adapter").iterdir()} == {"client-0", "client-1", "client-2", "classes.json"}
    assert run.summary["adapter"] == "adapter/client-N" and run.class_names == site.data.class_names
    assert "each client has an adapter of its own: adapter/client-0 to adapter/client-2\n" in run.table()
    # Nobody's adapter is another's, and the control: in another's place, they score something else.
    layers = [export.load_adapter(run.folder / "adapter" / f"client-{c}")[0] for c in range(3)]
    name = next(iter(layers[0]))
    assert len({l[name].B.sum().item() for l in layers}) == 3 and all(
        l[name].A.equal(layers[0][name].A) for l in layers
    )
    assert scored(run, site, own="client-0") != run.summary["accuracy_by_domain"]


def test_the_model_of_a_client_is_asked_for_by_its_number(personal):
    run, site = personal
    for part in site.partitions:
        right = run.model(client=part.client)(site.data.images[part.test]).argmax(-1) == site.data.labels[part.test]
        domain = site.data.domain_names[part.domain]
        assert 100 * int(right.sum()) / len(right) == run.summary["accuracy_by_domain"][domain]
    for asked, told in ((None, "model()"), (3, "client=3"), (-1, "client=-1")):
        with pytest.raises(fedinit.InputError) as refused:
            run.model(asked)
        assert str(refused.value) == f"{told}: strategy=fedsa_lora has a model a client; ask for model(client=0) to 2"


def test_clients_of_whom_no_update_counted_have_one_adapter(personal, tmp_path):
    """Two of six train in each of two rounds; the control is the run in which all train, which has no such adapter."""
    run = fedinit.run(*SHORT, *OTHERS["not all were asked"], "rounds=2", f"output_dir={tmp_path}")
    *own, rest = run.clients_by_model
    asked = run.clients["client"][run.clients["round"] > 0]  # before, all measure the start
    trained = set(asked.tolist())
    assert {client for (client,) in own} == trained and sorted({*trained, *rest}) == list(range(6)) and len(rest) >= 2
    names = {path.name for path in (run.folder / "adapter").iterdir()}
    assert names == {*(f"client-{client}" for client in trained), "client-untrained", "classes.json"}
    assert run.summary["untrained"] == len(rest) and f"\n{len(trained)} of 6 clients have an adapter" in run.table()
    assert {run.adapter(client).name for client in rest} == {"client-untrained"}
    shared, others = (export.load_adapter(run.adapter(client))[0] for client in (rest[0], own[0][0]))
    assert all(shared[n].A.equal(others[n].A) and not shared[n].B.equal(others[n].B) for n in shared)
    assert run.model(client=rest[0])(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape == (1, 10)
    with pytest.raises(fedinit.InputError, match=r"client=6: .*; ask for model\(client=0\) to 5"):
        run.model(client=6)
    # A folder that was taken away is no client that has not trained.
    shutil.rmtree(run.folder / "adapter" / f"client-{own[0][0]}")
    with pytest.raises(fedinit.InputError, match="is not there, and the run wrote it; put it back"):
        run.model(client=own[0][0])
    assert personal[0].clients_by_model == [[0], [1], [2]] and "untrained" not in personal[0].summary


def test_an_adapter_of_a_former_end_is_nobodys(tmp_path):
    """As where a client's factors were lost since: those of before would be taken for its own."""
    layers = {"blocks.0.mlp.fc2": Factors(torch.ones(2, 8), torch.ones(6, 2))}
    head = {"weight": torch.ones(3, 6), "bias": torch.zeros(3)}
    model = export.FinalModel(layers=layers, head=head, offset={}, class_names=["a", "b", "c"], personal=frozenset("B"))
    config = small_config("strategy=fedsa_lora", "evaluation=clients")
    for clients, untrained, there, former in (
        ((0, 1), 0, ["client-0", "client-1"], []),
        ((1,), 1, ["client-1", "client-untrained"], ["client-0"]),
        ((0, 1), 0, ["client-0", "client-1"], ["client-0", "client-untrained"]),
        ((1,), 1, ["client-1", "client-untrained"], ["client-0", "client-0.1", "client-untrained"]),
    ):
        ended = dataclasses.replace(model, by_client=dict.fromkeys(clients, layers), untrained=untrained)
        assert export.export(tmp_path, ended, config) == export.PERSONAL
        # All that lies in adapter/ is sealed by DONE.json, which names nothing else than a run's own files.
        assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.is_dir()) == there
        assert sorted(path.name for path in tmp_path.glob("adapter.former/*")) == former


def test_a_site_exports_its_own_and_the_server_what_they_share(personal, tmp_path):
    """As deployed: to the byte what the simulation of the same run exports, the server having none of it."""
    run, site = personal
    outcome = federate(run.config, LocalGrid(keeping(run.config, Cohort(site), tmp_path / "sites"), 3), site.backbone)
    assert outcome.final_hash == run.summary["final_hash"]
    for client in range(3):
        (own,) = (tmp_path / "sites").glob(f"*-client-{client}/adapter")
        simulated = run.folder / "adapter" / f"client-{client}"
        assert {p.name: p.read_bytes() for p in own.iterdir()} == {p.name: p.read_bytes() for p in simulated.iterdir()}
    assert export.export(tmp_path / "server", outcome.final_model(), run.config) == "adapter/shared"
    shared = load_file(tmp_path / "server" / "adapter" / "shared" / "factors.safetensors")
    assert shared and all(name.endswith("lora_A.weight") for name in shared)
    folder = tmp_path / "server" / "adapter" / "shared"
    with pytest.raises(ValueError, match="adapter_config.json"):
        peft.PeftConfig.from_pretrained(str(folder), local_files_only=True)


def test_what_the_server_alone_has_is_no_model(personal, tmp_path):
    shutil.copytree(personal[0].folder, tmp_path / "run")
    disk.replace_json(tmp_path / "run" / "summary.json", {**personal[0].summary, "adapter": "adapter/shared"})
    run = fedinit.load(tmp_path / "run")
    with pytest.raises(fedinit.InputError, match="each client's own factors are at its site, which has its adapter in"):
        run.model(client=0)
    assert "of its own, at its site, in its state-dir; adapter/shared has the rest" in run.table()


def test_where_all_have_one_model_no_client_has_another(tmp_path):
    run = fedinit.run(*SHORT, "rounds=1", "client.max_steps=1", "evaluation=none", f"output_dir={tmp_path}")
    with pytest.raises(fedinit.InputError) as refused:
        run.model(client=0)
    assert str(refused.value) == "client=0: strategy=lora_fair has one model for all clients; ask for model()"


def test_the_score_of_an_earlier_round_is_not_printed_beside_the_final_adapter():
    report = RoundReport(1, 0.1, 1.0, Accuracy({"x": 1}, {"x": 2}), 0, 0, [])
    tally = Tally()
    tally.round_done(report)
    assert tally.score == report.score
    tally.round_done(dataclasses.replace(report, round=2, score=None))  # no client's evaluation could be used
    assert tally.score is None and tally.seconds == 0.2
