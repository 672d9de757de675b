"""A server's names and addresses, as `--host` has them: one form of each, and where a server with these listens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from fedinit.errors import InputError

LABEL = re.compile(r"(?!-)[\w-]{1,63}(?<!-)", re.ASCII)
LONGEST = 253  # letters of a name, with its dots
ZONE = re.compile(r"\w+", re.ASCII)
LOOPBACK, EVERYWHERE = ("127.0.0.1", "::1"), ("0.0.0.0", "::")  # by IPv4, and by IPv6, which takes IPv4 in: guarded.py


def read(host: str) -> str:
    """A host as scripts and certificates have it: without brackets, in small letters, and without a dot at its end.

    Raises InputError for what is no name and no address."""
    bracketed = host.startswith("[") and host.endswith("]")
    bare = (host[1:-1] if bracketed else host).removesuffix(".")
    address = _address(bare)
    if address is None:
        labels = bare.lower().split(".")
        named = all(LABEL.fullmatch(label) for label in labels) and len(bare) <= LONGEST and not bracketed
        if not named or not re.search("[a-z]", labels[-1]):  # of numbers alone it would be a spoilt address
            raise InputError(
                f"--host {host}: expected a name or an address, such as fed.example.org or 192.0.2.7 (labels of 63 "
                f"letters, digits and -, {LONGEST} in all, the last with a letter)"
            )
        return bare.lower()
    if address.is_unspecified or address.is_multicast or host == "255.255.255.255":
        raise InputError(
            f"--host {host}: no site reaches a server there; give the address or name that sites reach it by"
        )
    if bracketed and address.version == 4:
        raise InputError(f"--host {host}: brackets are of IPv6 addresses")
    # The server listens on one of 127.0.0.0/8, and all of them are this machine.
    return LOOPBACK[0] if address.version == 4 and address.is_loopback else str(address)


def is_loopback(host: str) -> bool:
    """Whether a host, as `read` has it, is this machine and nobody else's."""
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") if address is None else address.is_loopback


def bind(hosts: Sequence[str]) -> str:
    """The address that a server of these hosts, as `read` has them, listens on: loopback, unless one is not; by IPv6,
    and by IPv4 as well, where one is an IPv6 address."""
    places = LOOPBACK if all(is_loopback(host) for host in hosts) else EVERYWHERE
    return places[any(":" in host for host in hosts)]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for what is none. One of IPv4 in the form of IPv6 is one of IPv4."""
    bare, percent, zone = host.partition("%")
    if percent and not ZONE.fullmatch(zone):
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
