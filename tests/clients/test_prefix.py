"""The kept prefix: the same training, its file, and what goes wrong with that."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from clients.cohort import Cohort
from clients.prefix import BATCH, Prefix, Rows
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.data.image_cache import ImageFile
from fedinit.errors import InputError
from fedinit.models.prefix import cut
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

WORDS = ("model.checkpoint=null", "adapter.blocks=last:1", "client.max_steps=2", "partition=iid", "partition.clients=2")


class NotSent(tuple):
    """What no pickle has."""

    def __new__(cls, *names):
        return super().__new__(cls, names)

    def __reduce__(self):
        raise TypeError("sent")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedinit"


@pytest.fixture
def prefix_of(tiny_vit, tiny_data):
    """prefix_of(images): of the tiny backbone, cut before its last block."""
    config = compose_config([*WORDS, "engine.prefix_cache=true", "engine.precision=fp32"])

    def make(data=tiny_data, backbone=tiny_vit, console=None) -> Prefix:
        return Prefix(cut(backbone, "blocks.1"), data, config, console)

    return make


def said(console: Console) -> str:
    return " ".join(console.export_text().split())


def test_what_is_kept_is_what_the_block_is_given(prefix_of, tiny_vit, tiny_data):
    given = []
    hook = tiny_vit.module.blocks[1].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    tiny_vit.module(tiny_vit.input.normalise(tiny_data.images, torch.device("cpu")))
    hook.remove()
    kept = prefix_of().dataset
    assert kept.images.dtype == torch.float32 and len(kept) == len(tiny_data)
    torch.testing.assert_close(kept.images[torch.arange(60)].view(given[0].shape), given[0], rtol=1e-5, atol=1e-6)
    assert kept.labels is tiny_data.labels and kept.test is tiny_data.test


def test_a_run_is_that_without_it():
    """Of FLoRA, which merges every round's update into the base."""
    ended = []
    for value in ("false", "true"):
        site = Site(small_config("adapter.blocks=last:1", "strategy=flora", f"engine.prefix_cache={value}"))
        ended.append(federate(site.config, LocalGrid(Cohort(site), len(site.partitions)), site.backbone))
    plain, kept = ended
    assert kept.score == plain.score and set(kept.offset) == {"blocks.1.attn.proj", "blocks.1.mlp.fc2"}
    for name, value in plain.offset.items():
        assert value.any()
        torch.testing.assert_close(kept.offset[name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))


MODELS = ("model.kwargs.num_heads=3", "model.kwargs.num_heads=2", "+model.kwargs.act_layer=relu")


def test_the_same_weights_in_another_model_are_anothers(capsys):
    """Heads and activations are in no weight."""
    ended = {}
    for word in MODELS:
        for value in ("true", "true", "false"):
            config = small_config("adapter.blocks=last:1", "rounds=1", word, f"engine.prefix_cache={value}")
            site = Site(config, console=Console())
            outcome = federate(site.config, LocalGrid(Cohort(site), len(site.partitions)), site.backbone)
            ended.setdefault(word, []).append(outcome.final_hash)
        said = capsys.readouterr().out
        assert said.count("into cache") == 1 and said.count("from cache") == 1, (word, said)
    assert all(len(set(hashes)) == 1 for hashes in ended.values()), ended
    assert len({hashes[0] for hashes in ended.values()}) == 3


def test_the_file_is_used_again_and_never_for_others(prefix_of, tiny_vit, tiny_data, own_cache, monkeypatch):
    first = prefix_of().dataset.images[torch.arange(60)]
    passes = []
    real = Rows.computed
    monkeypatch.setattr(Rows, "computed", lambda self, rows: passes.append(rows) or real(self, rows))
    console = Console(record=True, width=300, file=open(os.devnull, "w"))
    assert torch.equal(prefix_of(console=console).dataset.images[torch.arange(60)], first) and not passes
    assert "60 images before blocks.1" in (text := said(console)) and f"from cache {own_cache}" in text
    darker = replace(tiny_data, images=tiny_data.images // 2)
    other = replace(tiny_vit, input=replace(tiny_vit.input, mean=(0.1,)))
    for asked in ({"data": darker}, {"backbone": other}):
        passes.clear()
        assert not torch.equal(prefix_of(**asked).dataset.images[torch.arange(60)], first)
        assert len(passes) == 4, "all of it is computed"
    assert len(list(own_cache.glob("*.prefix"))) == 3


def test_stopped_and_begun_again_it_has_the_same_bytes(prefix_of, own_cache, monkeypatch):
    whole = prefix_of().dataset.images[torch.arange(60)]
    (path,) = own_cache.iterdir()
    path.unlink()
    real, left = Rows.computed, iter(range(2))

    def stopped(self, rows):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(self, rows)

    monkeypatch.setattr(Rows, "computed", stopped)
    with pytest.raises(KeyboardInterrupt):
        prefix_of()
    passes = []
    monkeypatch.setattr(Rows, "computed", lambda self, rows: passes.append(rows) or real(self, rows))
    assert torch.equal(prefix_of().dataset.images[torch.arange(60)], whole)
    assert 0 < len(passes) < 4, "what was there is not made again"


def damage(folder):
    """A few numbers of the one file there are others."""
    (path,) = folder.iterdir()
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\1" * 10)


def test_in_another_process_it_is_the_same_and_brings_no_open_file(prefix_of, tiny_data, own_cache):
    """As an actor is given it: of the data it needs the images alone, and mends what is damaged."""
    data = dataclasses.replace(tiny_data, class_names=NotSent("a", "b", "c", "d", "e"))
    prefix = prefix_of(data)
    rows, whole = torch.arange(60), prefix.dataset.images[torch.arange(60)].clone()
    images = pickle.loads(pickle.dumps(prefix.dataset.images))
    assert torch.equal(images[rows], whole)
    (file,) = own_cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-10] ^= 255
    file.write_bytes(content)
    there = pickle.loads(pickle.dumps(prefix.dataset.images))
    assert torch.equal(there[rows], whole) and file.read_bytes() != bytes(content)


def test_a_file_that_is_gone_is_made_anew_on_the_machine_that_had_it(prefix_of, own_cache, monkeypatch, caplog):
    prefix = prefix_of()
    whole, there = prefix.dataset.images[torch.arange(60)].clone(), pickle.dumps(prefix.dataset.images)
    (path,) = own_cache.iterdir()
    before = path.read_bytes()
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "another")
        with pytest.raises(InputError, match="which another has not; .* or engine.prefix_cache=false"):
            _ = pickle.loads(there)[:0]
    assert torch.equal(pickle.loads(there)[::BATCH], whole[::BATCH])
    assert path.read_bytes() == before, "with the neighbours, which are made at once"
    assert [record.getMessage() for record in caplog.records] == [f"prefix cache {path} is gone: computing again"]


def test_damage_on_the_disk_is_made_good(prefix_of, own_cache, caplog):
    whole = prefix_of().dataset.images[torch.arange(60)]
    damage(own_cache)
    again = prefix_of()
    assert torch.equal(again.dataset.images[torch.arange(60)], whole)
    assert re.search(r"prefix cache .* is damaged \(checksums differ\): computing again", caplog.text)
    _, damaged = again.file.read(np.arange(60))
    assert not len(damaged), "and written again"


def test_what_is_missing_is_not_looked_for_through_the_map(prefix_of):
    """A hole looked at there takes a page, and on a full tmpfs the process ended by SIGBUS."""
    file = prefix_of().file
    file._maps = None
    assert not len(file.missing(np.arange(60))) and not len(file.missing(np.arange(0)))
    with file.path.open("r+b") as written:
        written.seek(4096 + 4 * 7)
        written.write(b"\0" * 4)
    assert file.missing(np.array([9, 7, 3])).tolist() == [7]


def test_damage_where_nothing_can_be_written_is_made_good_in_memory(prefix_of, own_cache, monkeypatch):
    whole = prefix_of().dataset.images[torch.arange(60)]
    damage(own_cache)

    def full(self, row, pixels):
        raise OSError(errno.ENOSPC, "No space left on device")

    again = prefix_of()
    monkeypatch.setattr(ImageFile, "write", full)
    assert torch.equal(again.dataset.images[torch.arange(60)], whole)


@pytest.mark.parametrize("header", [b"\0" * 64, b"[1, 2]" + b" " * 58, b"{" * 64])
def test_a_header_that_is_none_is_told_in_plain_words(prefix_of, own_cache, caplog, header):
    whole = prefix_of().dataset.images[torch.arange(60)]
    (path,) = own_cache.iterdir()
    path.write_bytes(header.ljust(4096) + path.read_bytes()[4096:])
    assert torch.equal(prefix_of().dataset.images[torch.arange(60)], whole)
    assert re.search(r"is damaged \(its header (cannot be read|is another's)\): computing again", caplog.text)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_to_is_not_told_to_have_room(prefix_of, own_cache, monkeypatch, code):
    """Of a folder that lacks the file, and of one where it is not whole; one that is whole is only read."""

    def refused(*_):
        raise OSError(code, os.strerror(code))

    whole = prefix_of()
    monkeypatch.setattr(ImageFile, "write", refused)
    assert torch.equal(prefix_of().dataset.images[torch.arange(60)], whole.dataset.images[torch.arange(60)])
    with whole.file.path.open("r+b") as file:  # the first row's checksum
        file.seek(4096)
        file.write(b"\0" * 4)
    said = f"true: cache {own_cache} cannot be written to ({os.strerror(code)}); give another folder as "
    with pytest.raises(InputError, match=re.escape(said)):
        prefix_of()
    whole.file.path.unlink()
    monkeypatch.setattr(ImageFile, "_make", refused)
    with pytest.raises(InputError, match=re.escape(said)):
        prefix_of()


def test_no_room_and_no_leave_are_one_line(prefix_of, own_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("clients.prefix.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        no_room = (
            r"^engine.prefix_cache=true: cache .* cannot be used \(no room for .*\); make room, give another folder"
        )
        with pytest.raises(InputError, match=no_room):
            prefix_of()
    for path in own_cache.iterdir():
        path.unlink()
    own_cache.rmdir()
    own_cache.write_text("a file in the folder's place")
    with pytest.raises(InputError, match=re.escape(str(own_cache))) as raised:
        prefix_of()
    assert "\n" not in str(raised.value)
    # The drawn digits read no data.cache_dir, so that giving one would be refused.
    assert "give another folder as XDG_CACHE_HOME in the environment" in str(raised.value)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="^engine.prefix_cache=true: diagnostics=init .*use diagnostics=none$"):
        Site(compose_config([*WORDS, "engine.prefix_cache=true", "diagnostics=init"]))
    with pytest.raises(InputError, match="^engine.prefix_cache=true: .*use client.augment=none$"):
        Site(compose_config([*WORDS, "engine.prefix_cache=true", "client.augment=flip"]))
    for wrong in ("last:0", "first:2", "4", "last:x"):
        with pytest.raises(InputError, match=f"^adapter.blocks={wrong}: expected last:<number>"):
            compose_config([f"adapter.blocks={wrong}"])
