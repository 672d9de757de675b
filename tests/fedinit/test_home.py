"""A path that begins with ~ is expanded, or refused in one line, wherever it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clients.state.disk import SETTING
from fedinit.config.compose import compose_config
from fedinit.data.store import Keeping
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.runs.made_of import MadeOf

NOBODY = "~nobodyx/there"


def test_home_is_expanded() -> None:
    assert expand_home("data.root", "~/x") == Path.home() / "x"
    assert expand_home("data.root", "a/~") == Path("a/~")


@pytest.mark.parametrize(
    "words",
    [
        ["data=image_folder", f"data.root={NOBODY}"],
        ["data=csv", f"data.root={NOBODY}"],
        ["data=cifar10", f"data.root={NOBODY}"],
        ["data=torchvision", "data.set=svhn", f"data.root={NOBODY}"],
        [f"model.checkpoint={NOBODY}"],
    ],
)
def test_a_user_without_a_home_is_refused(words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        config = compose_config(words)
        MadeOf.of(config)
        config.data.load(3, (4, 4))
    assert str(caught.value).endswith(f"={NOBODY}: there is no home folder ~nobodyx; give the whole path")


@pytest.mark.parametrize("source", ["image_folder", "csv", "cifar10"])
def test_no_path_is_not_the_folder_of_the_process(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of data.root=$UNSET in a shell: what lay in the current folder was trained on."""
    for image in ("n/cat/0.png", "n/cat/1.png", "n/dog/0.png", "n/dog/1.png"):
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / image)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^data.root is empty; give the path$"):
        compose_config([f"data={source}", "data.root="]).data.load(3, (4, 4))


def test_no_checkpoint_is_not_timms_own_weights() -> None:
    with pytest.raises(InputError, match="^model.checkpoint is empty; give the path, or null"):
        compose_config(["model=vit_tiny", "model.checkpoint="])


def test_folders_to_write_into_are_refused_too() -> None:
    with pytest.raises(InputError, match=f"data.cache_dir={NOBODY}: there is no home folder ~nobodyx"):
        _ = Keeping(folder=NOBODY).place
    with pytest.raises(InputError, match=f"{SETTING}={NOBODY}: there is no home folder"):
        expand_home(SETTING, NOBODY)
