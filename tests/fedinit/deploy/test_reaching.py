"""A site whose connection fails is told which of the causes it is."""

from __future__ import annotations

import datetime
import types
from pathlib import Path

import pytest

from fedinit.deploy import certificates, reaching
from fedinit.errors import InputError
from tests.support.speaks import Speaks

CAUSES = {
    "over": "its certificate is over; fedinit deploy renew",
    "authority": "ca.crt ended 1 day ago, ",
    "early": "its certificate does not hold yet by this site's clock",
    "name": "its certificate is for another name or address than that",
    "address": "its certificate is for another name or address than that",
    "stranger": "vouches for, but another federation's or another program's",
}


def federation(folder: Path, monkeypatch, days_ago: float, hosts: list[str], authority_days: int) -> None:
    """server.key, server.crt of one day, and ca.crt."""
    folder.mkdir()

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) - datetime.timedelta(days=days_ago)

    with monkeypatch.context() as patch:
        names = {name: getattr(datetime, name) for name in ("timedelta", "timezone")}
        patch.setattr(certificates, "datetime", types.SimpleNamespace(datetime=Then, **names))
        authority = certificates.Authority.create("fedinit federation", authority_days)
        key, certificate = authority.certify(hosts, 1)
    certificates.write_key(folder / "server.key", key)
    certificates.write_certificate(folder / "server.crt", certificate)
    certificates.write_certificate(folder / "ca.crt", authority.certificate)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_certificate_that_is_not_trusted_is_told_by_its_own_cause(cause, tmp_path, monkeypatch):
    days_ago = {"over": 2.5, "authority": 2.5, "early": -2}.get(cause, 0)
    hosts = {"name": ["fed.example.org"], "address": ["192.0.2.7"]}.get(cause, ["127.0.0.1"])
    federation(tmp_path / "f", monkeypatch, days_ago, hosts, 1 if cause == "authority" else 90)
    federation(tmp_path / "g", monkeypatch, 0, hosts, 90)
    trusted = tmp_path / ("g" if cause == "stranger" else "f") / "ca.crt"
    with Speaks(tmp_path / "f") as address:
        at = address.replace("127.0.0.1", "localhost") if cause == "name" else address
        with pytest.raises(InputError) as refused:
            reaching.check(at, trusted)
    said = str(refused.value)
    assert said.startswith(f"{at}: ") and CAUSES[cause] in said and "\n" not in said
    assert [text for text in {*CAUSES.values()} if text in said] == [CAUSES[cause]]
    assert "another federation's, one that is over" not in said and said.endswith(")")
