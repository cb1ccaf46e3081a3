"""Which certificates do the tests use? A CA that is made for them, and pairs that it signs."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import ssl
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gsmtpd.server.certificates import Pair

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_DAY = datetime.timedelta(days=1)


class Authority:
    """A CA whose files are in `directory`: ca.pem, and those of each pair that it makes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"CA for tests {secrets.token_hex(4)}")
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            _builder(self._name, self._name, self._key, now - _DAY, now + 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = directory / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def pair(
        self,
        *names: str,
        kind: Literal["ecdsa", "rsa"] = "ecdsa",
        bits: int = 2048,
        days: tuple[float, float] = (-1, 10),
        one_file: bool = False,
        passphrase: bytes | None = None,
        file: str = "",
    ) -> Pair:
        """A certificate for `names`, hosts or IP addresses, and its key, in files.

        bits: of an RSA key. days: from when until when it is valid, counted from now. one_file: the
        key stands behind the certificate. file: what the files are called, without an ending; the
        first name by default. Existing ones are replaced.
        """
        key: PrivateKey = (
            ec.generate_private_key(ec.SECP256R1())
            if kind == "ecdsa"
            else rsa.generate_private_key(public_exponent=65537, key_size=bits)
        )
        now = datetime.datetime.now(datetime.UTC)
        first, last = days
        certificate = (
            _builder(_name(names[0]), self._name, key, now + first * _DAY, now + last * _DAY)
            .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase)
            if passphrase
            else serialization.NoEncryption(),
        )
        stem = self.directory / (file or names[0].replace("*", "_"))
        certificate_file, key_file = stem.with_name(stem.name + ".pem"), ""
        if not one_file:
            key_file = f"{stem}.key"
            _replace(Path(key_file), secret)
        _replace(certificate_file, certificate + secret if one_file else certificate)
        return Pair(str(certificate_file), key_file)

    def client(
        self,
        lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> ssl.SSLContext:
        """For a client that trusts this CA, and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.file)
        context.minimum_version, context.maximum_version = lowest, highest
        return context


def _replace(file: Path, content: bytes) -> None:
    """As those do who renew certificates: the name leads to the old file or to the new one."""
    new = file.with_name(file.name + ".new")
    new.write_bytes(content)
    new.replace(file)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    first: datetime.datetime,
    last: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
    )
