"""fedinit report, fedinit compare: which runs are meant, what is refused, and the table in every format."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.errors import InputError
from fedinit.report.formats import latex, markdown
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.results import AVERAGE, last_scores, results
from fedinit.runs.code import code_now
from tests.support.recorded_runs import config, write_run

GAINS = {"fedit": 0.0, "flora": -4.0, "lora_fair": 2.0}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Three methods over three seeds, as a sweep leaves them, and what else may lie there."""
    root = tmp_path_factory.mktemp("sweep")
    for method, gain in GAINS.items():
        for seed in range(3):
            values = config(strategy__name=method, seed=seed, rounds=3)
            jitter = 0.1 * ((7 * seed + len(method)) % 3)
            write_run(root / "digits" / f"{method}-s{seed}", values, gain=gain + jitter, recorded=False)
    write_run(root / "digits" / "fedit-s0.1", config(strategy__name="fedit", rounds=3), gain=50, recorded=False)
    (root / "digits" / "flora-s0" / "wandb").mkdir()
    (root / "digits" / "flora-s0" / "wandb" / "config.yaml").write_text("a: 1")
    (root / "other").mkdir()
    (root / "other" / "config.yaml").write_text("a: 1")
    return root


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main([*words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_seeds_are_one_method_and_what_lies_beside_is_left_out(sweep):
    shown = methods(find([sweep]))
    assert [(m.label, [r.seed for r in m.runs]) for m in shown] == [(name, [0, 1, 2]) for name in sorted(GAINS)]
    twice = methods(find([sweep, sweep / "digits" / "fedit-s0"]))
    assert [len(m.runs) for m in twice] == [3, 3, 3]


def test_the_table_is_the_mean_over_seeds_of_what_the_runs_say(sweep):
    found = results(methods(find([sweep])))
    runs = [r for r in find([sweep]) if r.name == "flora"]
    by_hand = [last_scores(r)[1]["noise"] for r in runs]
    (row,) = [row for row in found.rows if row.label == "flora"]
    assert row.figures["noise"].mean == pytest.approx(sum(by_hand) / 3)
    assert found.best is not None and found.best.label == "lora_fair"
    (alone,) = [row for row in found.rows if row.reference and "lora_fair" in row.label]
    assert alone.figures[AVERAGE].mean == pytest.approx(found.best.figures[AVERAGE].mean - 8)
    assert found.beyond_noise(row) is True and set(found.against) == {"fedit", "flora"}


def test_compare_prints_and_writes(sweep, tmp_path, capsys):
    files = {name: tmp_path / f"table.{name}" for name in ("csv", "markdown", "latex")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    code, out, err = run(capsys, "compare", str(sweep), *options)
    assert "fedit" in out and "head alone (lora_fair)" in out and "…" not in out
    assert code == 0 and err == "" and "lora_fair has the best average" in out and "Beyond noise" in out
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    (best,) = [r for r in rows if r["method"] == "lora_fair" and r["column"] == "average"]
    assert best["best"] == "true" and best["seeds"] == "0 1 2"
    (flora,) = [r for r in rows if r["method"] == "flora" and r["column"] == "average"]
    assert flora["beyond_noise"] == "true" and float(flora["against_best"]) == pytest.approx(-6, abs=0.3)
    assert files["markdown"].read_text().count("|\n") == 3 + 6 - 1 and "lora\\_fair" in files["markdown"].read_text()
    assert r"\toprule" in files["latex"].read_text() and r"lora\_fair" in files["latex"].read_text()


def test_two_runs_of_one_seed_say_nothing_of_noise(sweep, capsys):
    code, out, _ = run(capsys, "compare", *(str(sweep / "digits" / f"{m}-s0") for m in ("fedit", "lora_fair")))
    assert code == 0 and "Nothing is said of noise for fedit" in out and "seed=0,1,2" in out


def test_a_method_that_is_the_best_one_by_another_name_is_said_to_be_the_same(tmp_path, capsys):
    for name in ("fedit", "lora_fair"):
        for seed in (0, 1):
            write_run(tmp_path / f"{name}-{seed}", config(strategy__name=name, seed=seed), recorded=False)
    code, out, _ = run(capsys, "compare", str(tmp_path))
    assert code == 0 and "(the same as the best in every seed)" in out and "p = 1" not in out


def test_names_are_escaped_for_each_format(tmp_path):
    for name in ("a_b|c", "50%"):
        write_run(tmp_path / name, config(strategy__name=name, rounds=1), domains=("x&y", "p|q"), recorded=False)
    found = results(methods(find([tmp_path])))
    assert r"a\_b\textbar{}c" in latex(found) and r"50\%" in latex(found) and r"x\&y" in latex(found)
    assert r"a\_b\|c" in markdown(found) and r"p\|q" in markdown(found)
    widths = {line.replace(r"\|", "").count("|") for line in markdown(found).splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_equal_averages_are_both_the_best(tmp_path, capsys):
    for name in ("fedit", "flora"):
        write_run(tmp_path / name, config(strategy__name=name, rounds=1), recorded=False)
    code, out, _ = run(capsys, "compare", str(tmp_path))
    assert code == 0 and "fedit and flora have the best average" in " ".join(out.split()) and "±0.0" not in out


@pytest.mark.parametrize("command", ["report", "compare"])
def test_wrong_folders_are_one_line(sweep, tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "none"): "no such folder",
        str(tmp_path / "file"): "is a file; give the folder of a run",
        str(tmp_path / "empty"): "no run in it, no config.yaml anywhere below",
        str(sweep / "other"): "its config.yaml is of something else",
    }
    for path, why in cases.items():
        code, out, err = run(capsys, command, path)
        assert code == 2 and out == "" and err.startswith(f"error: {path}: ") and why in err and err.count("\n") == 1
    for words in ([command], [command, str(sweep), "--nothing"]):
        code, _, err = run(capsys, *words)
        assert code == 2 and f"fedinit {command} --help" in err and err.count("\n") == 1
    assert run(capsys, command, "--help")[0] == 0


def test_runs_on_different_data_are_refused_by_what_differs(sweep, tmp_path, capsys):
    one = str(sweep / "digits" / "fedit-s0")
    others = {
        "data=cifar10": config(data__name="cifar10", rounds=3),
        "data.domains=plain": config(data__domains=["plain"], rounds=3),
        "data=digits and data=image_folder": config(data__name="image_folder", data__evaluate_on="auto", rounds=3),
    }
    for i, (said, values) in enumerate(others.items()):
        other = write_run(tmp_path / str(i), values, domains=("plain",), recorded=False)
        for command in ("compare", "report"):
            code, _, err = run(capsys, command, one, str(other))
            assert code == 2 and said in err and one in err and "compare runs on the same data" in err
            assert err.count("\n") == 1 and f"fedinit {command} {one}; fedinit {command} {other}" in err


def test_the_commands_of_a_refusal_work(tmp_path, capsys, monkeypatch):
    """Of runs of three data in one folder: those that lie apart by their folder, those that are mixed by their own."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        for name in ("digits", "cifar10"):
            write_run(Path("out") / "mixed" / f"{name}-s{i}", config(data__name=name, seed=i, rounds=1), layers=1)
        write_run(Path("out") / "a b" / f"-s{i}", config(data__name="pacs", seed=i, rounds=1), layers=1)
    failed = config(data__name="svhn", rounds=1)
    write_run(Path("out") / "failed-s0", failed, reached=0, recorded=False)
    for command in ("compare", "report"):
        code, out, err = run(capsys, command, "out")
        assert code == 2 and out == "" and err.count("\n") == 1
        ways = err.partition("the same data: ")[2].strip().split("; ")
        assert f"fedinit {command} 'out/a b'" in ways and len(ways) == 3
        assert f"fedinit {command} out/mixed/digits-s0 out/mixed/digits-s1" in ways
        for way in ways:
            code, _, err = run(capsys, *shlex.split(way)[1:])
            assert code == 0 and err == "", way


def test_runs_that_say_less_are_no_bridge(tmp_path):
    """The first was not scored yet, so it fits both others, which do not fit each other."""
    write_run(tmp_path / "0", config(rounds=2), reached=0, recorded=False)
    write_run(tmp_path / "1", config(rounds=2, seed=1), classes=("a", "b"), layers=1)
    write_run(tmp_path / "2", config(rounds=2, seed=2), classes=("a", "c"), layers=1)
    with pytest.raises(InputError, match="1 and .*2: different data, classes=a,b and classes=a,c"):
        methods(find([tmp_path / name for name in "012"]))


def test_data_that_lies_elsewhere_is_the_same_data(tmp_path):
    for i, root in enumerate(("/a/pacs", "/b/pacs.zip")):
        write_run(tmp_path / str(i), config(data__root=root, seed=i, rounds=1), recorded=False)
    (method,) = methods(find([tmp_path]))
    assert [run.seed for run in method.runs] == [0, 1]
    write_run(tmp_path / "2", config(rounds=1, seed=3), classes=("other", "names"))
    write_run(tmp_path / "3", config(rounds=1, seed=4), classes=("these", "names"))
    with pytest.raises(InputError, match="classes=other,names and classes=these,names"):
        methods(find([tmp_path / "2", tmp_path / "3"]))


def test_a_domain_of_another_size_is_named(tmp_path):
    for i in (0, 1):
        path = write_run(tmp_path / str(i), config(seed=i, rounds=1), layers=1) / "record" / "partition.json"
        path.write_text(path.read_text().replace('"thick": 600', f'"thick": {600 + i}'))
    with pytest.raises(InputError, match="different data, images of thick=600 and images of thick=601; compare"):
        methods(find([tmp_path]))


def test_a_domain_that_one_was_judged_on_whole_is_other_data(tmp_path):
    """Nobody trained on its images, so that all of them are test images."""
    for i, left_out in enumerate((None, ["thick"], ["thick"])):
        values = config(seed=i, rounds=1, partition__test_domains=left_out)
        write_run(tmp_path / str(i), values, recorded=False)
    (method,) = methods(find([tmp_path / "1", tmp_path / "2"]))
    assert [run.seed for run in method.runs] == [1, 2]
    with pytest.raises(InputError, match="different data, partition.test_domains=not set and .*test_domains=thick; "):
        methods(find([tmp_path]))


def test_other_images_at_the_same_place_are_other_data(tmp_path):
    """made_of.json says what the images are; two that have the same are compared, wherever they lay."""
    for i, digest in enumerate(("a" * 64, "b" * 64, "a" * 64)):
        folder = write_run(tmp_path / str(i), config(data__root="/pacs", seed=i, rounds=1), recorded=False)
        (folder / "made_of.json").write_text(json.dumps({"images": {"digest": digest}, "checkpoint": None}))
    assert [run.seed for run in methods(find([tmp_path / "0", tmp_path / "2"]))[0].runs] == [0, 2]
    with pytest.raises(InputError, match="images=aaaaaaaaaaaa and images=bbbbbbbbbbbb"):
        methods(find([tmp_path]))


def test_other_levels_of_deep_grey_are_other_data(tmp_path):
    """The same files are other pixels then. A picture in a domain that no run used moved them between two seeds, whose
    mean was 64.5 ± 50.2."""
    for i, high in enumerate((3326.0, 60000.0, 3326.0)):
        folder = write_run(tmp_path / str(i), config(data__root="/pacs", seed=i, rounds=1), recorded=False)
        said = {"images": {"digest": "a" * 64}, "checkpoint": None, "levels": {"I": [74.0, high]}}
        (folder / "made_of.json").write_text(json.dumps(said))
    (method,) = methods(find([tmp_path / "0", tmp_path / "2"]))
    assert [run.seed for run in method.runs] == [0, 2]
    with pytest.raises(
        InputError, match=r'grey=\{"I": \[74.0, 3326.0\]\} and .*grey=\{"I": \[74.0, 60000.0\]\}; compare'
    ):
        methods(find([tmp_path]))


def test_a_share_of_the_clients_images_is_other_data_than_all(tmp_path):
    for i, share in enumerate((1.0, 0.34, 0.34)):
        values = config(seed=i, rounds=1, evaluation__where="clients", evaluation__participation=share)
        write_run(tmp_path / str(i), values, recorded=False)
    (method,) = methods(find([tmp_path / "1", tmp_path / "2"]))
    assert [run.seed for run in method.runs] == [1, 2]
    with pytest.raises(InputError, match="data, evaluation.participation=not set and evaluation.participation=0.34; "):
        methods(find([tmp_path]))


@pytest.mark.parametrize(("key", "value"), [("rounds", 2), ("partition__clients", 9)])
def test_of_a_share_of_the_clients_others_have_other_images(key, value, tmp_path):
    for i, more in enumerate(({}, {key: value})):
        values = config(
            **{"seed": i, "rounds": 1, "evaluation__where": "clients", "evaluation__participation": 0.5} | more
        )
        write_run(tmp_path / str(i), values, recorded=False)
    with pytest.raises(InputError, match=f"different data, {key.replace('__', '.')}="):
        methods(find([tmp_path]))


def test_a_run_of_before_there_was_a_choice_is_of_its_method(tmp_path):
    for i in (0, 1):
        values = config(seed=i, rounds=1)
        values.setdefault("server_device", "auto")
        if i:
            del values["server_device"]
        write_run(tmp_path / str(i), values, recorded=False)
    (method,) = methods(find([tmp_path]))
    assert [run.seed for run in method.runs] == [0, 1]


def test_a_second_run_of_a_seed_that_ended_otherwise_is_told(tmp_path, capsys):
    """One of the two counts, which depends on the order in which they are named."""
    folders = [write_run(tmp_path / str(i), config(rounds=1), gain=3.0 * i, recorded=False) for i in (0, 1)]
    told = "another run of this configuration and seed ended otherwise and is left out, "
    code, out, _ = run(capsys, "compare", *map(str, folders))
    assert code == 0 and told not in out  # of one hash: a copy
    summary = json.loads((folders[1] / "summary.json").read_text())
    for name in ("summary.json", "DONE.json"):
        values = json.loads((folders[1] / name).read_text())
        (folders[1] / name).write_text(json.dumps({**values, "final_hash": "f" * 64}))
    assert summary["final_hash"] != "f" * 64
    for one, other in (folders, folders[::-1]):
        code, out, _ = run(capsys, "compare", str(one), str(other), "--markdown", "-")
        assert code == 0 and out.count(f"seed 0 in {one.name}: {told}") == 1
        code, out, _ = run(capsys, "compare", str(one), str(other))
        assert code == 0 and f"seed 0 in {one}: {told}{other}." in out


def test_an_unfinished_run_is_compared_as_far_as_it_came(sweep, tmp_path, capsys):
    part = write_run(tmp_path / "part", config(strategy__name="rolora", rounds=3), reached=2, recorded=False)
    none = write_run(tmp_path / "none", config(strategy__name="hetlora", rounds=3), reached=0, recorded=False)
    code, out, _ = run(capsys, "compare", str(sweep), str(part), str(none))
    assert code == 0 and f"not done: {part}, round 2 of 3" in out
    assert f"In no row, since no round was evaluated: hetlora seed 0 in {none}: stopped." in out
    assert not any("hetlora" in line for line in out.splitlines() if line.startswith("│"))


def test_a_done_run_whose_last_round_has_no_score_says_of_which_its_figures_are(sweep, tmp_path, capsys):
    part = write_run(tmp_path / "part", config(strategy__name="rolora", rounds=3), recorded=False)
    rows = (part / "metrics.csv").read_text().splitlines()
    score = rows[0].split(",").index("accuracy")
    cells = rows[-1].split(",")
    cells[score:-8] = [""] * len(cells[score:-8])
    (part / "metrics.csv").write_text("\n".join([*rows[:-1], ",".join(cells)]) + "\n")
    code, out, _ = run(capsys, "compare", str(sweep), str(part))
    assert code == 0 and f"rolora seed 0 in {part}: its figures are of round 2 of 3, the last that has a score." in out
    whole = write_run(tmp_path / "whole", config(strategy__name="rolora", rounds=3), recorded=False)
    code, out, _ = run(capsys, "compare", str(sweep), str(whole))
    assert code == 0 and "its figures are of" not in out


def test_the_way_out_of_a_place_that_is_closed_is_by_the_option_in_use(sweep, tmp_path, capsys):
    place = tmp_path / "none" / "page.html"
    for words, way in (
        (["compare", "--report"], "fedinit compare … --report FILE writes it elsewhere"),
        (["report", "--output"], "fedinit report … --output FILE writes it elsewhere"),
    ):
        code, _, err = run(capsys, words[0], str(sweep), words[1], str(place))
        assert code == 2 and err.count("\n") == 1
        assert err == f"error: {place}: cannot be written (there is no folder {place.parent}); {way}\n"


def test_report_says_where_it_is(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedinit.report.page.render", lambda runs: f"<p>{len(runs)}")
    one = sweep / "digits" / "fedit-s0"
    assert run(capsys, "report", str(one)) == (0, f"{one / 'report.html'}: 1 run\n", "")
    target = tmp_path / "x.html"
    assert run(capsys, "report", str(sweep), str(one), "--output", str(target)) == (0, f"{target}: 9 runs\n", "")
    assert target.read_text() == "<p>9"
    code, out, err = run(capsys, "report", str(one), "--output", str(tmp_path / "no" / "x.html"))
    assert code == 2 and out == "" and f"cannot be written (there is no folder {tmp_path / 'no'})" in err


def test_no_figure_is_the_best_across_different_seeds(tmp_path, capsys):
    """fedit is better over its own seeds, because of one that lora_fair has not; over seed 0 lora_fair is."""
    for seed, gain in enumerate((0.0, 9.0, 9.0)):
        write_run(tmp_path / f"a-{seed}", config(strategy__name="fedit", seed=seed), gain=gain, recorded=False)
    write_run(tmp_path / "b-0", config(strategy__name="lora_fair"), gain=3.0, recorded=False)
    files = {name: tmp_path / f"table.{name}" for name in ("csv", "markdown", "latex", "report")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    code, out, err = run(capsys, "compare", str(tmp_path), *options)
    assert code == 0 and err == "" and "lora_fair has the best average over seed 0, which all have" in out
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "0, 1, 2" in lines["fedit"] and " 0 " in lines["lora_fair"]
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert {row["best"] for row in rows} == {"false"} and {row["seeds"] for row in rows} == {"0", "0 1 2"}
    table = files["markdown"].read_text()
    assert "**" not in table and "| seeds |" in table and "over the seeds that each row names" in table
    assert r"\textbf" not in files["latex"].read_text() and "fedit & 0, 1, 2 &" in files["latex"].read_text()
    page = files["report"].read_text()
    assert "over the seeds that each row names" in page and '<td class="number">0, 1, 2</td>' in page


def test_methods_without_a_seed_in_common_have_no_best(tmp_path, capsys):
    for seed, name in enumerate(("fedit", "lora_fair")):
        write_run(tmp_path / name, config(strategy__name=name, seed=seed), recorded=False)
    out = run(capsys, "compare", str(tmp_path))[1]
    assert "No method is the best one: there is no seed that all have a run of, over the same domains." in out
    assert "best average" not in out


@pytest.mark.parametrize("name", ["csv", "markdown", "latex"])
def test_a_dash_is_standard_output_and_that_alone(name, sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "compare", str(sweep), f"--{name}", "./-")[0] == 0
    for words in ([f"--{name}", "-"], [f"--{name}=-", "-q"]):
        code, out, err = run(capsys, "compare", str(sweep), *words)
        assert (code, err) == (0, "") and out.splitlines() == Path("-").read_text().splitlines()
    other = "csv" if name != "csv" else "latex"
    code, out, err = run(capsys, "compare", str(sweep), f"--{name}", "-", f"--{other}", "-")
    assert (code, out) == (2, "") and "standard output can be one of them" in err and err.count("\n") == 1


def test_runs_that_were_begun_by_other_code_are_named(tmp_path, capsys):
    for seed, code in enumerate(["one", "one", "two", None]):
        folder = tmp_path / f"a-s{seed}"
        write_run(folder, config(seed=seed), recorded=False)
        values = {
            "images": None,
            "checkpoint": None,
            **({"code": {"clients": "c", "strategies": code}} if code else {}),
        }
        (folder / "made_of.json").write_text(json.dumps(values))
    assert cli.main(["compare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Begun by other code than the other runs (made_of.json): lora_fair seed 2." in out
    assert "Begun by other code than is here now: lora_fair seed 0, lora_fair seed 1, lora_fair seed 2." in out
    (tmp_path / "a-s2" / "made_of.json").unlink()
    assert cli.main(["compare", str(tmp_path)]) == 0 and "other runs" not in capsys.readouterr().out
    for seed in (0, 1):
        made = {"images": None, "checkpoint": None, "code": dict(code_now())}
        (tmp_path / f"a-s{seed}" / "made_of.json").write_text(json.dumps(made))
    assert cli.main(["compare", str(tmp_path)]) == 0 and "other code" not in capsys.readouterr().out
