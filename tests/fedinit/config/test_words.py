"""Words that Hydra's grammar does not have are taken as they stand, or refused in one line that says what to do."""

from __future__ import annotations

import dataclasses
import os

import pytest

from fedinit.config import arguments
from fedinit.config.compose import compose_config, sweep
from fedinit.config.groups import groups
from fedinit.config.words import parse
from fedinit.errors import InputError, did_you_mean, nearest


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("/x/a=b", "/x/a=b"),
        ("/x/ü 🙂", "/x/ü 🙂"),
        ("/x/(1)&<2>;#!", "/x/(1)&<2>;#!"),
        ("/x/Tom's", "/x/Tom's"),
        ("C:\\Users\\ü\\", "C:\\Users\\ü\\"),
        ("[blocks.(0|1).mlp.fc2,'a b', x]", ["blocks.(0|1).mlp.fc2", "a b", "x"]),
        ("[é,[1,ü]]", ["é", [1, "ü"]]),
        ("{a: ü,b: [1,c=d]}", {"a": "ü", "b": [1, "c=d"]}),
        ("'a,b'", "a,b"),
        ("", ""),
        ("3", 3),
    ],
)
def test_a_value_is_taken_as_it_stands(value, meant):
    assert parse(f"data.root={value}").value() == meant


def test_the_home_folder_in_a_path():
    config = compose_config(["data=image_folder", "data.root=~/pacs", "output_dir=~/ü=1"])
    home = os.path.expanduser("~")
    assert (config.data.root, config.output_dir) == (f"{home}/pacs", f"{home}/ü=1")
    assert [run.config.output_dir for run in sweep(["output_dir=~/a,'~/b,c'"])] == [f"{home}/a", f"{home}/b,c"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rounds=[1", "rounds=[1: [ is not closed"),
        ("rounds=1]", "rounds=1]: ] closes no bracket"),
        ("name='a", "name='a: ' is not closed"),
        ("seed=range(0,3", "( is not closed"),
        ("rounds=3,", "nothing stands between two commas, or after one"),
        ("seed=range(0,a)", "seed=range(0,a): TypeError while evaluating"),
        ("model.kwargs={a}", "braces hold key: value pairs"),
        ("rounds", "rounds: expected key=value, such as rounds=3"),
        ("=3", "=3: expected key=value"),
        ("hydra=3", "hydra=3: is not read here"),
        ("rounds=3=4", "rounds=3=4: expected a whole number"),
        ("rounds=${nothing}", "rounds=${nothing}: there is no key nothing; write one that is there, or a value"),
        ("rounds=${rounds}", "rounds=${rounds}: refers to itself; write a value"),
        ("rounds=${oc.env:NO_SUCH_NAME}", "rounds=${oc.env:NO_SUCH_NAME}: the environment has no NO_SUCH_NAME; export"),
        ("rounds=${oc.no:3}", "rounds=${oc.no:3}: there is no function oc.no; OmegaConf's oc.env"),
        ("rounds=true", "rounds=true: expected a whole number"),
        ("rounds='3'", "rounds='3': a number is written without quotes, rounds=3"),
        ("rounds='x'", "rounds=x: expected a whole number"),
        ("participation='0.5'", "participation='0.5': a number is written without quotes, participation=0.5"),
        ("adapter.ranks=[2,'4']", "adapter.ranks[1]='4': a number is written without quotes, adapter.ranks[1]=4"),
        ("quorum='1'", "quorum='1': a number is written without quotes, quorum=1"),
        ("gate.enabled='no'", "gate.enabled=no: expected true or false"),
        ("gate.enabled='true'", "gate.enabled='true': true or false is written without quotes, gate.enabled=true"),
        ("rounds=1000000", "rounds=1000000: expected 999,999 or fewer"),
        ("adapter.ranks=[2,true]", "adapter.ranks[1]=true: expected a whole number"),
        (f"name={'a' * 400}", f"name={'a' * 79}…: expected a plain word of up to 200 characters"),
        ("+rounds=3", "+rounds=3: rounds is there already; leave the + out"),
        ("~nothing", "nothing: no such key"),
        ("~rounds", "~rounds: a run needs it; say what it is to be, rounds=…"),
        ("~strategy", "~strategy: a run needs it; say what it is to be, strategy=…"),
        ("strategy=", "strategy=: no such choice. Choices: fed_sb"),
        (
            "data=svhn",
            "data=svhn: no such choice; it is one of torchvision's, data=torchvision data.set=svhn data.root=",
        ),
        ("data=fashion-MNIST", "no such choice; it is one of torchvision's, data=torchvision data.set=fashion_mnist"),
        (
            "data=domainnet",
            "no such choice; fedinit data prepare domainnet ARCHIVE … --to FOLDER makes a folder of Dom",
        ),
        ("data=office_home", "fedinit data prepare officehome ARCHIVE … --to FOLDER makes a folder of Office-Home's"),
        ("data=cifar", "data=cifar: no such choice (did you mean 'cifar10'?). Choices: cifar10"),
        ("strategy={lam: 3}", "a group is chosen by name, and its keys are set one by one: strategy.lam=3"),
        ("strategy=[fedit,flora]", "one choice, not a list; -m strategy=fedit,flora runs each"),
        ("strategy=fedit,flora", "strategy=fedit,flora: several values; add -m to run each of them"),
        ("strategy=fedit,flor", "strategy=flor: no such choice (did you mean 'flora'?)"),
        ("strategy=glob(fed*)", "several values; add -m"),
        ("seed=range(0,3)", "several values; add -m"),
        ("data.domains=plain,inverted", "a list stands in brackets, data.domains=[…]"),
        ("strategy@x=fedit", "strategy@x: no such key (did you mean 'strategy'?)"),
        ("model=vit_tiny model.kwargs={img_size: 32}", "a new key takes a +, +model.kwargs={img_size: 32}"),
        ("model=vit_tiny model.kwargs.img_size=32", "a new key takes a +, +model.kwargs.img_size=32"),
        ("hydra.run.dir=x", "hydra.run.dir=x: is not read here; a run's folder is made under output_dir=…"),
        ("hydra/launcher=joblib", "is not read here; -m sweeps, and there hydra/launcher=… is"),
        ("hydra.searchpath=[/nowhere]", "expected a list of folders that are there"),
        ("hydra.searchpath=3", "expected a list of folders that are there"),
        ("init.beta=3", "init.beta: no such key (beside it: name, scale)"),
        ("momentum=3", "momentum: no such key (did you mean 'client.momentum'?)"),
        ("rounds.a=3", "rounds.a: no such key (rounds is a value)"),
    ],
)
def test_refused_in_one_line(words, said):
    with pytest.raises(InputError) as refused:
        compose_config(words.split(" ") if "{" not in words else words.replace(": ", ":").split(" "))
    assert said.replace(": 3}", ":3}").replace("size: 32", "size:32") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_near_is_offered_and_nothing_else():
    known = ("fedsvd", "sgd", "lora_fair", "closed_form", "sketch", "name")
    for word, near in {"sdg": "sgd", "lorafair": "lora_fair", "closed": "closed_form"}.items():
        assert did_you_mean(word, known) == f" (did you mean '{near}'?)"
    assert not any(did_you_mean(word, known) for word in ("fedavg", "beta", "adam", "nothing"))


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("fedd", "fedit"),
        ("fedti", "fedit"),
        ("FedIT", "fedit"),
        ("fedsv", "fedsvd"),
        ("lora-fair", "lora_fair"),
        ("lorafiar", "lora_fair"),
        ("floraa", "flora"),
        ("florsit", "florist"),
        ("hetlorra", "hetlora"),
        ("headalone", "head_alone"),
        ("fedex", "fedex_lora"),
        ("fedavg", None),
        ("scaffold", None),
    ],
)
def test_of_several_that_are_near_it_is_the_one_with_the_fewest_slips(word, near):
    assert nearest(word, groups()["strategy"]) == near


# -- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_over_a_pattern_a_range_and_a_list():
    runs = sweep(["strategy=glob([fed*,flora],exclude=[fed_sb,fedex*])", "seed=range(0,2)", "client.lr=0.1"])
    assert [run.config.strategy.name for run in runs[::2]] == ["fedit", "fedrot_lora", "fedsa_lora", "fedsvd", "flora"]
    assert [(run.words, run.config.seed) for run in runs[:2]] == [
        ("strategy=fedit seed=0", 0),
        ("strategy=fedit seed=1", 1),
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("strategy=glob(zz*)", "strategy=glob(zz*): no choice is like that. Choices: fed_sb"),
        ("seed=glob(*)", "glob(…) is for a group"),
        ("seed=range(3,3)", "there is no value in it to run with"),
        ("seed=range(0,3,0)", "range() arg 3 must not be zero"),
        ("client.lr=interval(0,1)", "there is no value in it to run with"),
        ("strategy=fedit,flor", "strategy=flor: no such choice (did you mean 'flora'?)"),
        ("hydra/launcher=nosuch", "hydra/launcher=nosuch: no such launcher; there are basic"),
        ("hydra/launcher=basic,joblib", "no such launcher; there are basic"),
        ("hydra/sweeper=other", "is not read here; -m sweeps"),
        ("hydra.searchpath=a,b", "expected a list of folders that are there"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(word, said):
    with pytest.raises(InputError) as refused:
        sweep([word])
    assert said in str(refused.value)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder of somebody's own configurations."""
    for name, text in {
        "experiment/mine": "# @package _global_\nrounds: 7\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n",
        "strategy/fedmine": "name: lora_fair\nlam: 0.5\n",
        "other": "defaults:\n  - config\n  - _self_\nrounds: 9\n",
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.slow
def test_other_folders_of_configurations(folder):
    config = compose_config([f"hydra.searchpath=[{folder}]", "experiment=mine", "strategy=fedmine"])
    assert (config.rounds, config.strategy.options["lam"]) == (7, 0.5)
    said = arguments.read(["--config-dir", str(folder), "-m", "experiment=mine", "strategy=glob(*mine)"])
    assert [run.config.seed for run in sweep(said.words, said.primary)] == [1, 2]
    with pytest.raises(InputError, match="strategy=fedmin: no such choice .did you mean 'fedmine'"):
        compose_config(["strategy=fedmin"], said.primary)
    said = arguments.read(["--config-name=other", "-cd", str(folder), "seed=3"])
    config = compose_config(said.words, said.primary)
    assert config == dataclasses.replace(compose_config(["seed=3"]), rounds=9)


@pytest.mark.slow
def test_what_would_be_run_is_shown(folder, capsys):
    def shown(*words: str) -> str:
        said = arguments.read(words)
        assert said.shows
        arguments.show(said)
        return capsys.readouterr().out

    assert "rounds: 3\n" in shown("--cfg", "job", "rounds=3")
    assert shown("-c", "job", "-p", "client.lr", "client.lr=0.5") == "0.5\n"
    assert str(folder) in shown("--info", "searchpath", "--config-dir", str(folder))
    assert "--config-dir" in shown("--hydra-help") and "fedinit 0" in shown("--version")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rounds=3", "--rounds=3: no such option; a key has no dashes, rounds=3"),
        ("--nothing", "--nothing: no such option; see --help"),
        ("--cfg", "expected one argument"),
        ("-m --jobs 0", "--jobs 0: expected a number from 1"),
        ("-m --jobs two", "invalid int value: 'two'; see --hydra-help"),
        ("--cfg jobs", "invalid choice: 'jobs'"),
        ("--resolve", "--resolve: goes with --cfg"),
        ("-m --cfg job", "--multirun --cfg: one of them at a time"),
        ("--config-dir /nowhere", "--config-dir /nowhere: no such folder"),
        ("--config-name nothing --cfg job", "Cannot find primary config 'nothing'"),
        ("--cfg job round=3", "round: no such key (did you mean 'rounds'?)"),
        ("--cfg job -p nothing", "--package nothing: no such key"),
        ("--info config strategy=flor", "strategy=flor: no such choice"),
    ],
)
def test_wrong_options_are_refused(words, said):
    with pytest.raises(InputError) as refused:
        arguments.show(arguments.read(words.split()))
    assert said in str(refused.value) and "\n" not in str(refused.value)
