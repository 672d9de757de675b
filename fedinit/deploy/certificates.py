"""The keys of a federation: a certificate authority, the server's certificate, a key pair a site.

Made with the `cryptography` package that Flower itself brings, so that neither openssl nor ssh-keygen need be there.
Elliptic curve keys throughout (P-384), which is what Flower's node authentication takes. A private key is readable by
its owner alone from the moment its file exists.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedinit.errors import InputError
from fedinit.opening import read_bytes
from fedinit.pasted import pasted

DAYS = 365  # that a server's certificate is good for, where nobody says
NO_MORE = "it can sign no more, and the federation ends with it: make a new one with fedinit deploy init"


@dataclass(frozen=True)
class Authority:
    """A certificate authority: whoever holds its certificate trusts what its key has signed."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @staticmethod
    def create(name: str, days: int) -> Authority:
        """A new authority of this common name, whose certificate holds for `days` days."""
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        other = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        signs_only = x509.KeyUsage(
            key_cert_sign=True, crl_sign=True, **dict.fromkeys((*other, "encipher_only", "decipher_only"), False)
        )
        builder = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(signs_only, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return Authority(key, builder.sign(key, hashes.SHA384()))

    def certify(self, hosts: Sequence[str], days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """A new key and its certificate, for a server.

        hosts: its names and IP addresses, one or more.
        days: how long the certificate holds.

        Raises InputError for a host that is neither.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        return key, self.signed(key.public_key(), hosts, days)

    def signed(self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], days: int) -> x509.Certificate:
        """A server's certificate for its public key, which is over with this authority's at the latest; hosts and days
        as in `certify`."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        builder = (
            _builder(subject, self.certificate.subject, key, days, self.certificate.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([host_name(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA384())


def renew(server: Path, authority: Path, days: int) -> x509.Certificate:
    """Replace the server's certificate by one for the same key and names, that holds for `days` days from now. The
    sites' copies of the authority's stay as they are.

    server: the folder with server.key and server.crt. authority: that with ca.key and ca.crt.

    Raises InputError for files that are not there or not a pair, and for an authority whose own days are over first.
    """
    try:
        key = serialization.load_pem_private_key(read_bytes(server / "server.key"), None)
        old = x509.load_pem_x509_certificate(read_bytes(server / "server.crt"))
        signer = serialization.load_pem_private_key(read_bytes(authority / "ca.key"), None)
        own = x509.load_pem_x509_certificate(read_bytes(authority / "ca.crt"))
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(name.value) for name in names]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; a renewal needs the server's folder and ca/") from error
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise InputError(f"{server}, {authority}: a key or certificate that cannot be read ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise InputError(f"{server}, {authority}: keys of another kind than fedinit deploy init makes")
    try:
        old.verify_directly_issued_by(own)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise InputError(f"{authority}: not the authority of {server / 'server.crt'}") from error
    if signer.public_key() != own.public_key():
        raise InputError(f"{authority}: its key is not that of its certificate")
    if days < 1:
        raise InputError(f"--days {days}: expected 1 or more; the certificate is as it was")
    if is_over(own):
        raise InputError(f"{authority / 'ca.crt'}: {standing(own)}; {NO_MORE}")
    if days_left(own) < days:
        raise InputError(
            f"{authority / 'ca.crt'}: has {standing(own)} itself, fewer than --days {days}; its end is the "
            "federation's, so give fewer days, or make a new one with fedinit deploy init"
        )
    certificate = Authority(signer, own).signed(key.public_key(), hosts, days)
    fresh = server / "server.crt.new"
    write_certificate(fresh, certificate)
    os.replace(fresh, server / "server.crt")
    return certificate


def days_left(certificate: x509.Certificate) -> int:
    """Days until a certificate is over, the one that has begun among them, so that a new one has what it was made for;
    negative once it is over."""
    days = (certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)) / datetime.timedelta(days=1)
    return math.ceil(days) if days > 0 else math.floor(days)


def is_over(certificate: x509.Certificate) -> bool:
    """Whether it does not hold any more."""
    return certificate.not_valid_after_utc < datetime.datetime.now(datetime.timezone.utc)


def standing(certificate: x509.Certificate) -> str:
    """``365 days left``, or ``ended 1 day ago, 2026-11-27 14:05 UTC``."""
    if not is_over(certificate):
        days = days_left(certificate)
        return f"{days} day{'s' * (days != 1)} left"
    end = certificate.not_valid_after_utc
    days = (datetime.datetime.now(datetime.timezone.utc) - end).days
    ago = f"{days} day{'s' * (days != 1)} ago" if days else "less than a day ago"
    return f"ended {ago}, {end:%Y-%m-%d %H:%M} UTC"


def renewal(server: Path) -> str:
    """The command that makes the certificate in a server's folder anew, with what it needs."""
    beside = (server.parent / "ca" / "ca.key").exists()
    words = [] if beside else ["--ca CA"]
    left = read_days_left(server / "ca.crt")
    if left is not None and 0 < left < DAYS:
        words.append(f"--days {left}")
    command = " ".join(["fedinit deploy renew", pasted(server), *words])
    return (
        command if beside else f"{command} (CA: the folder with the authority's ca.key, which is kept off the server)"
    )


def fault(server: Path) -> str:
    """Why nobody trusts the server in this folder now, and what to do, as a line; empty where that is not for the time
    of a certificate. A file that holds none is Flower's to tell."""
    now = datetime.datetime.now(datetime.timezone.utc)
    for name, whose in (("ca.crt", "the authority's certificate"), ("server.crt", "the server's certificate")):
        certificate = read(server / name)
        if certificate is not None and is_over(certificate):
            again = f"{renewal(server)} makes another; then start the SuperLink again"
            return f"{server / name}: {whose} {standing(certificate)}; {NO_MORE if name == 'ca.crt' else again}"
        if certificate is not None and certificate.not_valid_before_utc > now:
            begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            return (
                f"{server / name}: {whose} holds from {begins} on, by a clock that was ahead of this one: set it by NTP"
            )
    return ""


def check_days(word: str, days: int) -> None:
    """Raise InputError for more days, as --`word` has them, than there are until a certificate's last date."""
    if days > (most := most_days()):
        raise InputError(f"--{word} {days}: {most} are the most, since dates end with the year {datetime.MAXYEAR}")


def most_days() -> int:
    """That a certificate made within the next hour can hold."""
    last = datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)
    return (last - datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)).days


def read(path: Path) -> x509.Certificate | None:
    """The certificate in a file; None where it holds none."""
    try:
        return x509.load_pem_x509_certificate(read_bytes(path))
    except (OSError, ValueError):
        return None


def read_days_left(path: Path) -> int | None:
    """As `days_left`, of a file; None where it holds no certificate."""
    certificate = read(path)
    return None if certificate is None else days_left(certificate)


def another(path: Path, shown: bytes) -> x509.Certificate | None:
    """A certificate (DER) that is not the one in the file; None where it is."""
    other = x509.load_der_x509_certificate(shown)
    return None if other == x509.load_pem_x509_certificate(read_bytes(path)) else other


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, openssh: bool = False) -> None:
    """A private key as PEM (PKCS 8), or in OpenSSH's format, which Flower reads for nodes. Never over an old file."""
    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """A certificate as PEM; what was at `path` is replaced."""
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_node_key(folder: Path) -> None:
    """`node.key`, which stays on the site, and `node.pub`, which the server registers."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_key(folder / "node.key", key, openssh=True)
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / "node.pub").write_bytes(key.public_key().public_bytes(*form) + b"\n")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    last: datetime.datetime | None = None,
):
    now = datetime.datetime.now(datetime.timezone.utc)
    length = datetime.timedelta(days=days)
    end = now + (length if last is None else min(length, last - now))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # for a site whose clock is a little behind
        .not_valid_after(end)
    )


def host_name(host: str) -> x509.GeneralName:
    """A host name or an IP address, as a certificate holds it. Raises InputError for neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InputError(f"--host {host}: expected a host name or an IP address") from error
