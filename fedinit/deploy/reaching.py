"""Whether a site can reach its server, asked before a SuperNode is started, which would wait in silence: what speaks at
the server's port, whose certificate it shows, and how far the two clocks are apart."""

from __future__ import annotations

import email.utils
import http.client
import ssl
import time
from pathlib import Path
from typing import cast

from fedinit.deploy import certificates
from fedinit.errors import InputError

SECONDS = 3.0  # that the server has to answer, each of two times
AHEAD, BEHIND = 4.0, 300.0  # seconds of a site's clock: Flower refuses what was signed 5 s from now, or 305 s ago


def check(address: str, authority: Path | None) -> str:
    """What is found at the server, as a line; empty where all is well.

    address: host:port, the host in brackets where it is an IPv6 address.
    authority: the file of the certificate authority; None for plain http.

    Raises InputError, one line, for a server that this site will never be let in by as it is.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InputError(f"{address}: expected host:port, the port from 1 to 65535")
    host = host.strip("[]")
    if authority is not None and certificates.read(authority) is None:
        there = "holds no certificate" if authority.is_file() else "is not there"
        raise InputError(f"{authority}: {there}; copy the ca.crt that fedinit deploy init made to this site's folder")
    try:
        date = _date(host, int(port), authority)
    except ssl.SSLCertVerificationError as error:
        raise InputError(f"{address}: {_distrust(error, cast(Path, authority))} ({error.verify_message})") from error
    except ssl.SSLError as error:
        raise InputError(
            f"{address} speaks no TLS ({error.reason}), and this site has an authority's certificate: a server with "
            "--insecure, or another program's port"
        ) from error
    except (http.client.HTTPException, OSError) as error:
        if authority is None and isinstance(error, http.client.HTTPException | ConnectionResetError):
            raise InputError(
                f"{address} answers no plain http ({type(error).__name__}): this site was made with --insecure, and "
                "the server speaks TLS"
            ) from error
        if not isinstance(error, OSError):
            raise InputError(
                f"{address} speaks TLS and no http ({type(error).__name__}): another program's port"
            ) from error
        return f"{address}: {error.strerror or error}; the SuperNode waits until the server is there"
    if date is None:
        return ""
    apart = time.time() - date
    if not -BEHIND < apart < AHEAD:
        raise InputError(
            f"{address}: this site's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the server's, "
            "which takes nothing signed at another time: set both by NTP"
        )
    return ""


def _distrust(error: ssl.SSLCertVerificationError, authority: Path) -> str:
    """Which of the things that a certificate can be wrong by it is, and what to do."""
    # X509_V_ERR_…, which OpenSSL's x509_vfy.h numbers
    if error.verify_code == 10:
        own = certificates.read(authority)
        if own is not None and certificates.is_over(own):
            return f"{authority} {certificates.standing(own)}: {certificates.NO_MORE}"
        return (
            "its certificate is over; fedinit deploy renew makes another at the server, and this site needs nothing, "
            "where its clock is right"
        )
    if error.verify_code == 9:
        return "its certificate does not hold yet by this site's clock, or the server's was ahead: set both by NTP"
    if error.verify_code in (62, 64):
        return (
            "its certificate is for another name or address than that; connect to one that fedinit deploy init was "
            "given as --host"
        )
    vouched = f"its certificate is not one that {authority} vouches for"
    if error.verify_code in (2, 7, 18, 19, 20, 21):
        return f"{vouched}, but another federation's or another program's; copy the ca.crt of this server's federation"
    return vouched


def shown_certificate(port: int) -> bytes | None:
    """The certificate (DER) that a server on this machine shows at its port, whoever signed it; None where there is no
    server with TLS."""
    for host in ("127.0.0.1", "::1"):
        try:
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, port), timeout=SECONDS))
        except (OSError, ValueError):
            continue
    return None


def _date(host: str, port: int, authority: Path | None) -> float | None:
    """The time by the server's clock, in seconds since 1970; None where it does not say."""
    if authority is None:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    else:
        trusted = ssl.create_default_context(cafile=str(authority))
        connection = http.client.HTTPSConnection(host, port, timeout=SECONDS, context=trusted)
    try:
        connection.request("GET", "/")
        said = connection.getresponse().getheader("Date")
    finally:
        connection.close()
    try:
        return None if said is None else email.utils.parsedate_to_datetime(said).timestamp()
    except ValueError:
        return None
