"""What `--host` may be, what becomes of it, and where a server listens by it."""

from __future__ import annotations

import socket

import pytest

from fedinit.deploy import hosts
from fedinit.deploy.guarded import listeners
from fedinit.deploy.processes import free_port
from fedinit.errors import InputError

LONG = ".".join(["a" * 63] * 4)[:253]  # the last label of 61


@pytest.mark.parametrize(("given", "expected"), [
    ("fed.example.org", "fed.example.org"),
    ("FED.Example.org.", "fed.example.org"),
    ("node_1", "node_1"),
    ("1.2.3.example", "1.2.3.example"),
    ("3com.com", "3com.com"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    (LONG, LONG),
    ("192.0.2.7", "192.0.2.7"),
    ("[2001:DB8::1]", "2001:db8::1"),
    ("2001:db8:0:0::1", "2001:db8::1"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("fe80::1%Eth0", "fe80::1%Eth0"),
    ("[::1]", "::1"),
    ("127.0.0.2", "127.0.0.1"),
    ("::ffff:127.0.0.3", "127.0.0.1"),
    ("LOCALHOST", "localhost"),
    ("localhost.", "localhost"),
])  # fmt: skip
def test_a_host_has_one_form(given, expected):
    assert hosts.read(given) == hosts.read(expected) == expected


@pytest.mark.parametrize("given", [
    *("", ".", "a..b", ".a", "a..", "1.2.3", "1.2.3.4.5", "300.1.1.1", "12", "a.1", "-a.org", "a-.org", "a b"),
    *("a;b", "a/b", "a:8000", "192.0.2.7:1", "[192.0.2.7]", "[fed.example.org]", "[::1", "::1]", "[[::1]]", "::g"),
    *("0.0.0.0", "::", "::ffff:0:0", "224.0.0.1", "ff02::1", "255.255.255.255"),
    *("bücher", "1::2::3", "fe80::1%e;x", "a" * 64 + ".org", LONG + "a", "٣.٣.٣.٣"),
])  # fmt: skip
def test_what_is_no_host_is_refused_in_one_line(given):
    with pytest.raises(InputError) as caught:
        hosts.read(given)
    said = str(caught.value)
    assert said.startswith(f"--host {given}: ") and "\n" not in said


@pytest.mark.parametrize(("given", "bound"), [
    (["127.0.0.1"], "127.0.0.1"),
    (["LOCALHOST", "localhost.", "127.0.0.2", "fed.localhost"], "127.0.0.1"),
    (["[::1]"], "::1"),
    (["localhost", "::1"], "::1"),
    (["192.0.2.7"], "0.0.0.0"),
    (["fed.example.org", "localhost"], "0.0.0.0"),
    (["localhost.example.org"], "0.0.0.0"),
    (["notlocalhost"], "0.0.0.0"),
    (["2001:db8::1"], "::"),
    (["fed.example.org", "::1"], "::"),
    (["127.0.0.1", "2001:db8::1"], "::"),
])  # fmt: skip
def test_a_server_listens_where_its_hosts_are(given, bound):
    assert hosts.bind([hosts.read(host) for host in given]) == bound


def reached(places, port) -> list[bool]:
    found = []
    for place in places:
        with socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET) as probe:
            found.append(probe.connect_ex((place, port)) == 0)
    return found


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_on_ipv6_it_is_there_for_ipv4_too(host):
    """The operator's own tools come by 127.0.0.1, and a name may be an address of either kind."""
    port = free_port()
    opened = listeners(host, port)
    try:
        assert reached(["127.0.0.1", "::1"], port) == [True, True]
        assert {one.getsockname()[0] for one in opened} == ({"::1", "127.0.0.1"} if host == "::1" else {"::"})
        with pytest.raises(SystemExit, match=rf"bind on address \[{host}\]:{port}: "):
            listeners(host, port)
    finally:
        for one in opened:
            one.close()
