"""Certificates that are over, at the server and at a site: which, since when, and what makes another."""

from __future__ import annotations

import datetime
import json
import shutil
import types
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.deploy import certificates, guarded
from fedinit.deploy.flower import Server
from fedinit.deploy.processes import free_port
from tests.support.small import WORDS
from tests.support.speaks import Speaks


@pytest.fixture()
def made(tmp_path, monkeypatch):
    """`fedinit deploy init` so many days ago; nothing listens at its port."""

    def make(days_ago: float, *words: str) -> Path:
        class Then(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime.now(tz) - datetime.timedelta(days=days_ago)

        names = {name: getattr(datetime, name) for name in ("timedelta", "timezone", "MAXYEAR")}
        with monkeypatch.context() as patch:
            patch.setattr(certificates, "datetime", types.SimpleNamespace(datetime=Then, **names))
            assert cli.main(["deploy", "init", str(tmp_path / "f"), "--port", str(free_port()), *WORDS, *words]) == 0
        return tmp_path / "f"

    # What flwr says of a server that does not run and of one whose certificate is over.
    unavailable = {"success": False, "error-message": "SuperLink is unavailable"}
    answer = types.SimpleNamespace(stdout=json.dumps(unavailable), stderr="", returncode=0)
    monkeypatch.setattr(Server, "_flwr", lambda self, *words: answer)
    return make


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (365 * 24, "365 days left"),
        (1, "1 day left"),
        (-1, "ended less than a day ago, "),
        (-25, "ended 1 day ago, "),
        (-49, "ended 2 days ago, "),
    ],
)
def test_how_long_a_certificate_holds_is_said_in_words(hours, said):
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours, seconds=-1)
    text = certificates.standing(types.SimpleNamespace(not_valid_after_utc=end))
    assert text == (said if hours > 0 else f"{said}{end:%Y-%m-%d %H:%M} UTC")


@pytest.mark.parametrize("command", ["run", "status", "register"])
def test_a_certificate_that_is_over_is_told_with_what_renews_it(made, command, capsys):
    """Where ca/ is kept elsewhere, the command says so."""
    folder = made(31.5, "--days", "30")
    server = folder / "server"
    capsys.readouterr()
    assert cli.main(["deploy", command, str(server)]) == 1
    told = capsys.readouterr()
    line = f"failed: {server / 'server.crt'}: the server's certificate ended 1 day ago, "
    renews = f"fedinit deploy renew {server}"
    assert told.err.startswith(line) and told.err.count("\n") == 1
    assert told.err.endswith(f"{renews} makes another; then start the SuperLink again\n")
    shutil.move(folder / "ca", folder.parent / "safe")
    assert cli.main(["deploy", command, str(server)]) == 1
    told = capsys.readouterr()
    where = "(CA: the folder with the authority's ca.key, which is kept off the server)"
    assert f"{renews} --ca CA {where} makes another; then start the SuperLink again" in told.err
    if command == "status":
        assert "server's certificate: ended 1 day ago, " in told.out and f"{renews} --ca CA {where} makes" in told.out
    assert cli.main(["deploy", "renew", str(server), "--ca", str(folder.parent / "safe")]) == 0
    assert cli.main(["deploy", command, str(server)]) == 1
    assert "no SuperLink answers at 127.0.0.1:" in capsys.readouterr().err


def test_a_federation_whose_authority_is_over_is_not_told_to_renew(made, capsys):
    folder = made(31.5, "--days", "30", "--authority-days", "30")
    capsys.readouterr()
    assert cli.main(["deploy", "run", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "ca.crt: the authority's certificate ended 1 day ago" in error and "fedinit deploy init" in error
    assert cli.main(["deploy", "renew", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "ca.crt: ended 1 day ago, " in error and "fedinit deploy init" in error and error.count("\n") == 1


def test_a_clock_that_is_behind_that_of_init_is_told(made, capsys):
    folder = made(-2)
    assert cli.main(["deploy", "run", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "ca.crt: the authority's certificate holds from " in error and "set it by NTP" in error


def test_a_renewal_is_no_longer_than_its_authority(made, capsys):
    """The command that is advised is one that is taken."""
    folder = made(31.5, "--days", "30", "--authority-days", "90")
    assert cli.main(["deploy", "status", str(folder)]) == 1
    assert f"fedinit deploy renew {folder / 'server'} --days 59 makes another" in capsys.readouterr().out
    assert cli.main(["deploy", "renew", str(folder / "server"), "--days", "59"]) == 0


def test_a_superlink_with_a_certificate_that_is_over_says_so_and_does_not_start(made, monkeypatch):
    folder = made(31.5, "--days", "30")
    started = []
    monkeypatch.setattr(guarded, "superlink", lambda: started.append(True))
    monkeypatch.chdir(folder / "server")
    words = ["superlink", "--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"]
    monkeypatch.setattr("sys.argv", ["guarded"])
    with pytest.raises(SystemExit, match="error: .*server.crt: the server's certificate ended 1 day ago, .* renew "):
        guarded.main(words)
    assert not started
    assert cli.main(["deploy", "renew", str(folder)]) == 0
    guarded.main(words)
    guarded.main(["superlink", "--insecure"])
    assert started == [True, True]


def test_a_superlink_that_shows_the_one_before_is_to_be_started_again(made, capsys):
    folder = made(31.5, "--days", "30")
    with Speaks(folder / "server") as address:
        (folder / "server/federation.json").write_text(json.dumps({"port": int(address.split(":")[1]), "secure": True}))
        assert cli.main(["deploy", "renew", str(folder)]) == 0
        capsys.readouterr()
        assert cli.main(["deploy", "status", str(folder)]) == 1
        told = capsys.readouterr()
    assert "the SuperLink still shows another certificate (ended 1 day ago, " in told.out
    assert "shows another certificate than" in told.err and "UTC): start the SuperLink again" in told.err
