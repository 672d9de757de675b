"""Deployments with real processes on loopback: the hash of the simulated run, refusals, and what is killed.

pytest -m slow tests/test_deployment.py: about a minute a test on an idle machine; the campaign prints its tally,
FEDINIT_KILLS says how many (30).
"""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import fedinit
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.deploy import certificates, layout
from fedinit.deploy.processes import DeployFailed, Process, environment, free_port
from fedinit.models import build_backbone
from fedinit.runs import folder as run_folder
from fedinit.runs.observer import Observer, RoundReport
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support import federations
from tests.support.federations import (
    asked_to_train,
    config_of,
    federation,
    finish,
    kill,
    rounds_saved,
    simulated,
    summary,
)
from tests.support.small import WORDS

ROOT = Path(fedinit.__file__).resolve().parent.parent


def fedinit_deploy(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedinit", "deploy", *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=federations.LIMIT)


@pytest.mark.slow
def test_a_federation_on_this_machine_ends_in_the_hash_of_the_simulation(tmp_path):
    """`fedinit deploy up`, as a person types it: two SuperNodes, one round, evaluated by the clients."""
    words = ["data.domains=[plain,inverted]", "engine.clients_per_bank=1", "rounds=1", f"output_dir={tmp_path}"]
    done = fedinit_deploy("up", "--insecure", *WORDS, *words)
    assert done.returncode == 0, done.stderr
    assert f"final hash: {simulated(config_of(tmp_path, 'rounds=1', 'evaluation=clients'))}" in done.stdout
    assert "2 SuperNodes (insecure)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("sites", "secure"), [(2, True), (4, False), (4, True)], ids=["2_tls", "4_insecure", "4_tls"])
def test_sites_end_in_the_hash_of_the_simulation(tmp_path, sites, secure):
    domains = ["plain", "inverted", "thick", "noise"][:sites]
    config = config_of(tmp_path, f"data.domains=[{','.join(domains)}]", "evaluation=clients")
    with federation(tmp_path, config, sites=sites, secure=secure) as made:
        before = {*made.folder.rglob("*")}
        made.start()
        finish(made, made.server.start_run(), config)
        fresh = {*made.folder.rglob("*")} - before
        kept = [path for path in fresh if path.is_file() and not {path.suffix, path.parent.name} & {".id", "flwr"}]
        assert {"superlink.db", "site-1"} <= {part for path in kept for part in path.parts}
        closed = [path for path in (*kept, made.folder / "server/flwr") if not path.stat().st_mode & 0o077]
        assert {*kept, made.folder / "server/flwr"} == {*closed}  # ids of nodes are the rest
        nodes = made.server.nodes()
        assert [node["status"] for node in nodes] == ["online"] * sites
        if secure:
            assert [node["name"] for node in nodes] == [f"site-{i}" for i in range(sites)]
    assert summary(config)["final_hash"] == simulated(config)


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["secure_aggregation=secagg"],
    ["privacy=clients", "privacy.epsilon=null", "privacy.noise=1e-9", "privacy.clip=1e3"],
    ["robust=geometric_median"],
], ids=["secagg", "privacy", "robust"])  # fmt: skip
def test_a_secret_sum_and_a_private_run_are_those_of_the_simulation(tmp_path, words):
    """To rounding: masks, and a deployment's noise, which is next to none here, are the operating system's."""
    config = config_of(tmp_path, "data.domains=[plain,inverted,thick]", "strategy=fedit", *words)
    with federation(tmp_path, config, sites=3, secure=True) as made:
        made.start()
        finish(made, made.server.start_run(), config)
    last = max(run_folder.place(config).glob("checkpoints/round-*"))
    (file,) = last.glob("*.safetensors")
    stored, site = safetensors.torch.load_file(file), Site(config)
    expected = federate(config, LocalGrid(Cohort(site), 3), site.backbone).aggregate
    for name, value in wire.to_tensors(expected.layers, expected.head).items():
        (found,) = (tensor for key, tensor in stored.items() if key.endswith(f"model/{name}"))
        assert torch.allclose(found, value, rtol=0, atol=1e-5), name


@pytest.mark.slow
def test_sites_say_their_epsilon_of_a_run_that_is_private_for_examples(tmp_path):
    """The same ε as in a simulation, which is of steps and images; the noise is each site's own."""
    config = config_of(tmp_path, "strategy=fedit", "privacy=examples", "rounds=2")
    with federation(tmp_path, config, sites=2, secure=True) as made:
        made.start()
        finish(made, made.server.start_run(), config)
    told = list(csv.DictReader((run_folder.place(config) / "clients.csv").open()))
    expected: list[float] = []

    class Watch(Observer):
        def round_done(self, report: RoundReport) -> None:
            expected.extend(client.epsilon for client in report.clients)

    site = Site(config)
    federate(config, LocalGrid(Cohort(site), 2), site.backbone, observers=[Watch()])
    assert [float(row["epsilon"]) for row in told] == pytest.approx(expected) and 0 < max(expected) <= 8


@pytest.mark.slow
def test_who_has_no_registered_key_and_who_trusts_another_authority_stay_out(tmp_path):
    """None of these SuperNodes comes to see a run, and the log has the line that a person needs."""
    config = config_of(tmp_path)
    with federation(tmp_path, config, sites=3, secure=True) as made:
        made.start_superlink()
        made.server.register()
        (made.folder / "site-0/node.key").unlink()
        certificates.write_node_key(made.folder / "site-0")
        other = certificates.Authority.create("another", days=1)
        certificates.write_certificate(made.folder / "site-1/ca.crt", other.certificate)
        script, key = made.folder / "site-2/supernode.sh", " --auth-supernode-private-key node.key"
        assert key in script.read_text()
        script.write_text(script.read_text().replace(key, ""))
        for site in range(3):
            made.start_supernode(site)
        for node in made.supernodes.values():
            federations.until(lambda node=node: node._process.poll() == 1, f"{node.name} ended")
        unregistered, stranger, keyless = (" ".join(node.log.read_text().split()) for node in made.supernodes.values())
        assert "code: 2004" in unregistered and "its certificate is not one that ca.crt vouches for" in stranger
        assert "code: 2001" in keyless and "must be registered via the CLI" in keyless
        assert "No SuperNode found with the given public key" in made.superlink.log.read_text()
        assert {node["status"] for node in made.server.nodes()} == {"registered"}  # and none ever online


@pytest.mark.slow
def test_a_port_in_use_ends_the_program_with_a_line(tmp_path):
    """The SuperLink's, and then a SuperNode's own."""
    with federation(tmp_path, config_of(tmp_path), secure=False) as made:
        with socket.create_server(("127.0.0.1", made.port)):
            made.start_superlink()
            federations.until(lambda: not made.superlink.running(), "the SuperLink ended")
        assert "address already in use" in made.superlink.log.read_text()
        with pytest.raises(DeployFailed, match="(?s)SuperLink ended with exit code 1:.*address already in use"):
            made.check()
        made.start_superlink()
        with socket.create_server(("127.0.0.1", made.federation.node_ports[0])):
            made.start_supernode(0)
            node = made.supernodes[0]
            federations.until(lambda: not node.running(), "the SuperNode ended")
        assert "address already in use" in node.log.read_text()


@pytest.mark.slow
def test_a_site_without_images_ends_the_run_with_a_line(tmp_path):
    draw = np.random.default_rng(0)
    for place in ("north/a", "north/b", "south/a", "south/b"):
        (tmp_path / "images" / place).mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8))
            image.save(tmp_path / "images" / place / f"{i}.png")
    words = ["data=image_folder", f"data.root={tmp_path}/images", "data.domains=[north,south]", "data.classes=[a,b]"]
    config = config_of(tmp_path, *words)
    with federation(tmp_path, config, secure=False) as made:
        script, setting = made.folder / "site-1/supernode.sh", f' data-root="{tmp_path}/images"'
        assert setting in script.read_text()
        script.write_text(script.read_text().replace(setting, ""))
        made.start()
        with pytest.raises(DeployFailed) as failed:
            finish(made, made.server.start_run(), config, starts=1)
    said = "this site has no images for data=image_folder: start the node with --node-config 'data-root="
    assert said in str(failed.value) and "\n" not in str(failed.value)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> list[Path]:
    """Two files that fit the same model."""
    folder, tensors = tmp_path_factory.mktemp("backbones"), {}
    tensors = build_backbone(config_of(folder).model).module.state_dict()
    paths = [folder / "ours.safetensors", folder / "theirs.safetensors"]
    for i, path in enumerate(paths):
        safetensors.torch.save_file({k: v + i * 1e-3 * torch.ones_like(v) for k, v in tensors.items()}, path)
    return paths


@pytest.mark.slow
def test_a_site_is_the_client_that_its_key_was_registered_as(tmp_path):
    """SuperLink, registered keys, TLS: the name that the server gave a key reaches its ServerApp."""
    config = config_of(tmp_path)
    with federation(tmp_path, config, secure=True) as made:
        script = made.folder / "site-1/supernode.sh"
        script.write_text(script.read_text().replace("partition-id=1", "partition-id=0"))
        made.start()
        with pytest.raises(DeployFailed) as failed:
            finish(made, made.server.start_run(), config, starts=1)
    said = " ".join(str(failed.value).split())
    assert "it is registered as site-1, and says that it is client 0" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("ours.safetensors", "theirs.safetensors"), "the run is for the backbone"),
        (("partition-id=1", "partition-id=0"), "partition-id 0 is given to two nodes; each needs one of its own"),
        (("ours.safetensors", "torn.safetensors"), "site; the site's log says why"),
    ],
)
def test_a_site_that_does_not_fit_ends_the_run_with_a_line(tmp_path, backbones, edit, said):
    """What a site's own settings are stays there."""
    config = config_of(tmp_path, f"model.checkpoint={backbones[0]}")
    Path(backbones[0]).with_name("torn.safetensors").write_bytes(b"none")
    with federation(tmp_path, config, secure=False) as made:
        script = made.folder / "site-1/supernode.sh"
        assert edit[0] in script.read_text()
        script.write_text(script.read_text().replace(*edit))
        made.start()
        with pytest.raises(DeployFailed) as failed:
            finish(made, made.server.start_run(), config, starts=1)
        log = " ".join(made.supernodes[1].log.read_text().split())
    assert said in str(failed.value) and "\n" not in str(failed.value)
    assert "torn.safetensors" not in str(failed.value)
    assert ("torn.safetensors" in log) == (edit[1] == "torn.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "secure"),
    [
        (["strategy=lora_fair"], False),  # a node without a key comes back under another id
        (["strategy=lora_fair"], True),
        (["strategy=fedsa_lora"], True),  # B never leaves the client
        (["strategy=lora_fair", "reinit=local"], True),  # nor do a client's own factors
    ],
    ids=["no_key", "key", "fedsa_lora", "reinit_local"],
)
def test_a_supernode_killed_in_mid_round_and_started_again(tmp_path, method, secure):
    """The client is asked again, goes on from what it kept on its disk, and no bit of the result is another."""
    config = config_of(tmp_path, *method, "rounds=3")
    with federation(tmp_path, config, secure=secure) as made:
        made.start()
        run = made.server.start_run()
        federations.until(lambda: asked_to_train(made, 1) >= 2, "site 1 is asked to train round 2")
        kill(made, "1")
        federations.bring_back(made, "1")
        assert finish(made, run, config) == 0
    kinds = [line["kind"] for line in federations.ledger(config)]
    assert "client_back" in kinds and "client_state_lost" not in kinds
    assert summary(config)["final_hash"] == simulated(config)


@pytest.mark.slow
@pytest.mark.parametrize("method", [["strategy=flora"], ["strategy=fedsa_lora"]], ids=["flora", "fedsa_lora"])
@pytest.mark.parametrize("victim", ["superlink", "serverapp"])
def test_a_server_killed_and_started_again_goes_on_to_the_same_hash(tmp_path, victim, method):
    """The database knows the sites' keys, the checkpoint the run; clients that keep a state keep it on their disk."""
    config = config_of(tmp_path, *method, "rounds=3")
    with federation(tmp_path, config, secure=True) as made:
        made.start()
        run = made.server.start_run()
        federations.until(lambda: rounds_saved(config) >= 1, "round 1 is saved")
        kill(made, victim)
        federations.bring_back(made, victim)
        assert finish(made, run, config) == 1
    assert [line["round"] for line in federations.ledger(config) if line["kind"] == "resumed"]
    assert not [line for line in federations.ledger(config) if line["kind"] == "client_state_lost"]
    assert summary(config)["final_hash"] == simulated(config)


@pytest.mark.slow
def test_campaign_of_kills(tmp_path):
    count = int(os.environ.get("FEDINIT_KILLS", "30"))
    tally = federations.campaign(tmp_path, seed=0, count=count, words=["strategy=fedsa_lora", "rounds=3"])
    print(f"\nkilled and brought back: {dict(tally)}")
    assert tally["same"] == count


@pytest.mark.slow
def test_without_keys_whoever_reaches_the_port_is_a_client(tmp_path):
    """With --insecure, by Flower's own command, without a key and in the place of a site that is not there: a limit
    (docs/trust.md)."""
    config = config_of(tmp_path, "rounds=1")
    with federation(tmp_path, config, secure=False) as made:
        made.start_superlink()
        made.start_supernode(0)
        words = ["--insecure", "--superlink", f"127.0.0.1:{made.port}", "--port", str(free_port())]
        command = ["flower-supernode", *words, "--node-config", "partition-id=1"]
        log = tmp_path / "stranger.log"
        made.supernodes[1] = Process("stranger", command, log, environment(tmp_path / "flwr"))
        finish(made, made.server.start_run(), config)
        assert "Receiving: train message" in log.read_text()
    assert summary(config)["final_hash"] == simulated(config)


@pytest.mark.slow
def test_two_folders_on_two_machines(tmp_path):
    """The steps of docs/deployment.md: init, each folder copied to a machine of its own (here: a place of its own),
    SuperLink, register, SuperNodes, run, status."""
    from fedinit.deploy.processes import wait_for_port

    made, port = tmp_path / "federation", free_port()
    words = ["data.domains=[plain,inverted]", "engine.clients_per_bank=1", "rounds=1", "output_dir=outputs"]
    ports = ["--port", str(port), "--node-port", str(free_port())]
    assert fedinit_deploy("init", str(made), "--host", "127.0.0.1", *ports, *WORDS, *words).returncode == 0
    machines = [shutil.copytree(made / name, tmp_path / "machines" / name) for name in ("server", "site-0", "site-1")]
    started = []
    try:
        for place, script in zip(machines, ("superlink", "supernode", "supernode"), strict=True):
            command = ["/bin/sh", str(place / f"{script}.sh")]
            started.append(Process(place.name, command, place / "log", environment(place / "flwr")))
            if script == "superlink":
                wait_for_port(port, started[0])
                assert "registered: site-0, site-1" in fedinit_deploy("register", str(place)).stdout
                assert "nobody new" in fedinit_deploy("register", str(place)).stdout
        done = fedinit_deploy("run", str(machines[0]))
        assert done.returncode == 0, done.stderr
        again = fedinit_deploy("run", str(machines[0]))  # shows the finished run
        status = fedinit_deploy("status", str(machines[0])).stdout
    finally:
        for process in reversed(started):
            process.stop()
    expected = simulated(config_of(tmp_path, "rounds=1", "evaluation=clients"))
    assert f"final hash: {expected}" in done.stdout and f"final hash: {expected}" in again.stdout
    days, sites, runs = status.split("\n\n")
    assert "server's certificate: 365 days left" in days and "authority's certificate: 3650" in days
    assert [line.split()[:2] for line in sites.splitlines()[1:]] == [["site-0", "online"], ["site-1", "online"]]
    assert [line.split()[1] for line in runs.splitlines()[1:]] == ["finished:completed"] * 2


STRANGER = """
import os, pathlib
pathlib.Path({written!r} + "-" + str(os.getpid())).write_text("code of a stranger")
from flwr.app import Message, RecordDict
from flwr.{kind}app import {Kind}App
app = {Kind}App()
"""
SERVER = """
@app.main()
def main(grid, context):
    import time
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.5)
    replies = grid.send_and_receive([Message(RecordDict(), n, "query.describe") for n in nodes], timeout=60)
    print("REPLIES", [reply.error.code if reply.has_error() else "answered" for reply in replies], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False], ids=["at the server", "at a site of a server that was taken over"])
def test_a_strangers_bundle_runs_nowhere(tmp_path, guarded):
    """One that brings code under the names of fedinit's apps, which writes a file where it runs."""
    config = config_of(tmp_path)
    app = tmp_path / "stranger"
    for package, kind in (("strategies", "server"), ("clients", "client")):
        (app / package).mkdir(parents=True)
        (app / package / "__init__.py").write_text("")
        text = STRANGER.format(written=str(tmp_path / f"written-by-{kind}"), kind=kind, Kind=kind.title())
        (app / package / f"{kind}_app.py").write_text(text + (SERVER if kind == "server" else ""))
    layout.write_app(app, config)
    with federation(tmp_path, config, secure=True) as made:
        if not guarded:
            script = made.server.folder / "superlink.sh"
            plain = script.read_text().replace("python -m fedinit.deploy.guarded superlink", "flower-superlink")
            script.write_text(plain)
        made.start()
        if guarded:
            with pytest.raises(DeployFailed, match="no bundle with code|[Ii]nvalid"):
                made.server._ask("run", str(app), "federation")
        else:
            run = str(made.server._ask("run", str(app), "federation")["run-id"])
            made.server.wait(run)
            assert "REPLIES [7, 7]" in made.server.log_tail(run, 60)  # INVALID_FAB, twice
        written = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("written-by-*"))
    assert written == ([] if guarded else ["written-by-server"])
