"""Which models of a run are exported, and where each is."""

from __future__ import annotations

import fedinit
from fedinit.exports.writing import export
from tests.support.small import WORDS

SHORT = (*WORDS, "client.max_steps=2")


def test_what_clients_have_in_common_is_written_once(tmp_path):
    """Two of six trained; the control is each of the others by its number, which is another's to the byte."""
    words = ("rounds=1", "partition.clients=6", "participation=0.34", "evaluation=clients", "strategy=fedsa_lora")
    run = fedinit.run(*SHORT, *words, f"output_dir={tmp_path / 'runs'}")
    (first,), (second,), rest = run.clients_by_model
    export(run, "merged", tmp_path / "all")
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {f"client-{first}", f"client-{second}", "client-untrained"} and len(rest) == 4
    said = (tmp_path / "all" / "client-untrained" / "README.md").read_text()
    assert "this is the model of all clients of whom no update counted." in said
    weights = []
    for client in (rest[-1], first):
        export(run, "merged", tmp_path / str(client), client)
        weights.append((tmp_path / str(client) / "model.safetensors").read_bytes())
    assert weights[0] == (tmp_path / "all" / "client-untrained" / "model.safetensors").read_bytes() != weights[1]
