"""Is a client's TLS understood, whatever it sends, and is it shown the right certificate?"""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gsmtpd.server.certificates import CertificateError, Certificates, Pair
from gsmtpd.server.tls import NotTLSError, TLSError, TLSStream
from tests.certificates import Authority
from tests.servers import find_program

V1_1, V1_2, V1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NAME = "mail.example.org"
VERSIONS = pytest.mark.parametrize("version", [V1_2, V1_3])


class Setting(NamedTuple):
    """A CA and certificates: one for NAME, which is shown by default, and some by name."""

    authority: Authority
    certificates: Certificates


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    return Setting(
        authority,
        Certificates(
            authority.pair(NAME),
            {
                "MX.example.net": authority.pair("mx.example.net", kind="rsa"),
                "*.example.net": authority.pair("*.example.net", one_file=True),
            },
        ),
    )


class Client:
    """The other end of a TLSStream, by Python's ssl."""

    def __init__(
        self,
        server: TLSStream,
        context: ssl.SSLContext,
        name: str | None = NAME,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.server = server
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=name, session=session
        )

    def hello(self) -> bytes:
        """Its first octets; they are taken out."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def shake_hands(self, piece: int = 1 << 20) -> None:
        """Until both are done. piece: octets that go to the server at a time."""
        done = False
        while not done:
            done = self._waited(self.tls.do_handshake)
            self.exchange(piece)
        self.read()  # the tickets

    def exchange(self, piece: int = 1 << 20) -> bytes:
        """Carry what both have to say; the plaintext that the server gets."""
        octets = self._outgoing.read()
        plain = [
            self.server.receive(octets[start : start + piece])
            for start in range(0, len(octets), piece)
        ]
        self._incoming.write(self.server.take_output())
        return b"".join(plain)

    def say(self, plain: bytes, piece: int = 1 << 20) -> bytes:
        """Send `plain`; what the server gets."""
        assert self.tls.write(plain) == len(plain)
        return self.exchange(piece)

    def encrypted(self, plain: bytes) -> bytes:
        self.tls.write(plain)
        return self._outgoing.read()

    def read(self) -> bytes:
        plain: list[bytes] = []
        while self._waited(lambda: plain.append(self.tls.read(65536))):
            if not plain[-1]:
                break
        return b"".join(plain)

    def names(self) -> list[str]:
        """For whom is the certificate that it was shown?"""
        certificate: dict[str, Any] = self.tls.getpeercert() or {}
        return [name for _, name in certificate["subjectAltName"]]

    def close(self) -> bool:
        """Say the end; whether the server has said it, too."""
        both = self._waited(self.tls.unwrap)
        self.exchange()
        return both

    @staticmethod
    def _waited(action: Callable[[], object]) -> bool:
        try:
            action()
        except ssl.SSLWantReadError:
            return False
        return True


def connect(setting: Setting, version: ssl.TLSVersion = V1_3, **settings: Any) -> Client:
    client = Client(
        TLSStream(setting.certificates.context),
        setting.authority.client(version, version),
        **settings,
    )
    client.shake_hands()
    return client


# A conversation.


@VERSIONS
def test_both_hear_each_other(setting: Setting, version: ssl.TLSVersion) -> None:
    client = connect(setting, version)
    assert client.say(b"EHLO a\r\n") == b"EHLO a\r\n"
    client.server.send(b"250-mx\r\n")
    client.server.send(b"250 ok\r\n")
    client.exchange()
    assert client.read() == b"250-mx\r\n250 ok\r\n"


@pytest.mark.parametrize(
    ("version", "description"),
    [(V1_3, "TLSv1.3:TLS_AES_256_GCM_SHA384"), (V1_2, "TLSv1.2:ECDHE-ECDSA-AES256-GCM-SHA384")],
)
def test_the_description(setting: Setting, version: ssl.TLSVersion, description: str) -> None:
    server = TLSStream(setting.certificates.context)
    client = Client(server, setting.authority.client(version, version))
    server.receive(client.hello())
    assert server.description == ""
    client = connect(setting, version)
    assert client.server.description == description


@VERSIONS
def test_octet_by_octet(setting: Setting, version: ssl.TLSVersion) -> None:
    server = TLSStream(setting.certificates.context)
    client = Client(server, setting.authority.client(version, version))
    client.shake_hands(1)
    assert client.say(b"x" * 20000, 1) == b"x" * 20000
    assert client.server.receive(b"") == b""


def test_plaintext_in_the_burst_that_ends_the_handshake(setting: Setting) -> None:
    server = TLSStream(setting.certificates.context)
    client = Client(server, setting.authority.client())
    server.receive(client.hello())
    client._incoming.write(server.take_output())
    client.tls.do_handshake()
    assert client.say(b"EHLO a\r\n" * 5000) == b"EHLO a\r\n" * 5000


def test_much_in_both_directions(setting: Setting) -> None:
    client = connect(setting)
    much = os.urandom(500_000)
    assert client.say(much) == much
    client.server.send(much)
    client.server.send(b"")
    client.exchange()
    assert client.read() == much


def test_openssl_is_made_when_the_hello_is_whole(setting: Setting) -> None:
    before = setting.certificates.context.session_stats()["accept"]
    server = TLSStream(setting.certificates.context)
    hello = Client(server, setting.authority.client()).hello()
    for octet in hello[:-1]:
        assert server.receive(bytes([octet])) == b""
    assert setting.certificates.context.session_stats()["accept"] == before
    assert server.take_output() == b""
    server.receive(hello[-1:])
    assert setting.certificates.context.session_stats()["accept"] == before + 1
    assert server.take_output()[0] == 0x16


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_hello_in_many_records(setting: Setting, size: int) -> None:
    server = TLSStream(setting.certificates.context)
    client = Client(server, setting.authority.client(), name="mx.example.net")
    server.receive(in_records(client.hello(), size))
    client._incoming.write(server.take_output())
    client.shake_hands()
    assert client.names() == ["mx.example.net"]


def in_records(hello: bytes, size: int) -> bytes:
    """The one record `hello` as many of `size` octets."""
    message = hello[5:]
    pieces = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(hello[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def padded(hello: bytes, octets: int) -> bytes:
    """The message of `hello` with an unknown extension of `octets` as its last."""
    message = bytearray(hello[5:])
    position = 38
    position += 1 + message[position]
    position += 2 + int.from_bytes(message[position : position + 2], "big")
    position += 1 + message[position]
    extra = b"\xfa\xfa" + octets.to_bytes(2, "big") + bytes(octets)
    size = int.from_bytes(message[position : position + 2], "big") + len(extra)
    message[position : position + 2] = size.to_bytes(2, "big")
    message += extra
    message[1:4] = (len(message) - 4).to_bytes(3, "big")
    return bytes(message)


def test_a_hello_larger_than_a_record(setting: Setting) -> None:
    server = TLSStream(setting.certificates.context)
    client = Client(server, setting.authority.client())
    records = in_records(client.hello()[:5] + padded(client_hello(setting), 20_000), 16384)
    for octet in records:
        server.receive(bytes([octet]))
    assert server.take_output()[:1] == b"\x16"  # a ServerHello


def client_hello(setting: Setting, name: str | None = NAME) -> bytes:
    return Client(TLSStream(setting.certificates.context), setting.authority.client(), name).hello()


# The end.


@VERSIONS
def test_the_client_ends_it(setting: Setting, version: ssl.TLSVersion) -> None:
    client = connect(setting, version)
    sent = client.encrypted(b"QUIT\r\n")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    assert not client.server.ended
    assert client.server.receive(sent + client._outgoing.read()) == b"QUIT\r\n"
    assert client.server.ended
    assert client.server.receive(b"\x17\x03\x03\x00\x01x") == b""


@VERSIONS
def test_the_server_ends_it(setting: Setting, version: ssl.TLSVersion) -> None:
    client = connect(setting, version)
    client.server.send(b"221 Bye\r\n")
    client.server.close()
    client.exchange()
    assert client.tls.read() == b"221 Bye\r\n"
    assert client.tls.read() == b""  # an end that was said, which nobody in between has cut off
    assert client.close()
    assert client.server.ended


def test_both_end_it(setting: Setting) -> None:
    client = connect(setting)
    assert not client.close()
    client.server.close()
    assert not client.close()  # what the server says is on its way
    assert client.close()


def test_the_server_ends_it_while_octets_come_in(setting: Setting) -> None:
    client = connect(setting)
    client.server.close()
    client.server.receive(client.encrypted(b"x" * 1000))
    client.server.close()
    client.exchange()
    assert client.tls.read() == b""


def test_an_end_before_the_handshake_is_done(setting: Setting) -> None:
    server = TLSStream(setting.certificates.context)
    server.close()
    assert server.take_output() == b""
    client = Client(server, setting.authority.client())
    server.receive(client.hello())
    server.take_output()
    server.close()
    assert server.take_output() == b""


def test_nothing_is_sent_before_the_handshake(setting: Setting) -> None:
    server = TLSStream(setting.certificates.context)
    with pytest.raises(TLSError, match="no handshake yet"):
        server.send(b"220 mx\r\n")
    server.receive(Client(server, setting.authority.client()).hello())
    with pytest.raises(TLSError, match="no handshake yet"):
        server.send(b"220 mx\r\n")


# What is refused.


@pytest.mark.parametrize(
    "octets", [b"EHLO a\r\n", b"\r\n", b"\x80\x2e\x01", b"\x15\x03\x01\x00\x02\x01\x00", b"\x00"]
)
def test_what_is_not_tls(setting: Setting, octets: bytes) -> None:
    server = TLSStream(setting.certificates.context)
    with pytest.raises(NotTLSError, match="not TLS"):
        server.receive(octets[:1])
    assert server.take_output() == b""


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\x16GET / HTTP/1.1", "wrong version number"),
        (b"\x16\x04\x01\x00\x10", "wrong version number"),
        (b"\x16\x03\x01\xff\xff", "wrong packet length"),
        (b"\x16\x03\x01\x00\x02\x01\x00" + b"\x16\x03\x01\x00\x00", "wrong packet length"),
        (b"\x16\x03\x01\x00\x02\x01\x00" + b"\x16\x02\x01\x00\x01x", "wrong version number"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "unexpected message"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "length too short"),
        (b"\x16\x03\x01\x00\x02\x01\x00" + b"\x17\x03\x01\x00\x01x", "unexpected message"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "excessive message size"),
    ],
)
def test_garbage(setting: Setting, octets: bytes, reason: str) -> None:
    server = TLSStream(setting.certificates.context)
    with pytest.raises(TLSError, match=reason):
        server.receive(octets)
    assert server.take_output()[:1] == b"\x15"  # an alert
    assert server.take_output() == b""
    assert server.description == ""


def test_a_hello_in_crumbs_is_bounded(setting: Setting) -> None:
    server = TLSStream(setting.certificates.context)
    server.receive(b"\x16\x03\x01\x00\x04\x01\x00\x3f\xff")
    for _ in range(6_000):
        assert server.receive(b"\x16\x03\x01\x00\x01x") == b""
    with pytest.raises(TLSError, match="excessive message size"):
        for _ in range(1_000):
            server.receive(b"\x16\x03\x01\x00\x01x")


def test_tls_1_1(setting: Setting) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = setting.authority.client(V1_1, V1_1)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    client = Client(TLSStream(setting.certificates.context), context)
    with pytest.raises(TLSError, match="^unsupported protocol$"):
        client.shake_hands()
    client._incoming.write(client.server.take_output())
    with pytest.raises(ssl.SSLError, match="(?i)protocol version"):
        client.tls.do_handshake()


def test_no_cipher_in_common(setting: Setting) -> None:
    context = setting.authority.client(V1_2, V1_2)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # and the certificate is ECDSA
    client = Client(TLSStream(setting.certificates.context), context)
    with pytest.raises(TLSError, match="^no shared cipher$"):
        client.shake_hands()


@VERSIONS
def test_the_client_does_not_trust(
    setting: Setting, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path).client(version, version)
    client = Client(TLSStream(setting.certificates.context), stranger)
    with pytest.raises(ssl.SSLCertVerificationError):
        client.shake_hands()
    with pytest.raises(TLSError, match="alert unknown ca"):
        client.exchange()
    client.server.close()


@VERSIONS
def test_a_changed_octet(setting: Setting, version: ssl.TLSVersion) -> None:
    client = connect(setting, version)
    sent = bytearray(client.encrypted(b"MAIL FROM:<a@example.org>\r\n"))
    sent[-1] ^= 1
    with pytest.raises(TLSError, match="bad record mac"):
        client.server.receive(bytes(sent))
    assert client.server.take_output()
    with pytest.raises(TLSError):
        client.server.send(b"250 ok\r\n")


def test_plain_text_behind_the_handshake(setting: Setting) -> None:
    client = connect(setting)
    with pytest.raises(TLSError, match="wrong version number"):
        client.server.receive(b"QUIT\r\n")


def test_no_renegotiation(setting: Setting) -> None:
    """openssl s_client can ask for one, and Python cannot."""
    openssl = find_program("openssl")
    before = setting.certificates.context.session_stats()["accept_good"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [openssl, "s_client", "-tls1_2", "-connect", address]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as client:
            assert client.stdin is not None
            connection, _ = listener.accept()
            connection.settimeout(60)
            with connection:
                server = TLSStream(setting.certificates.context)
                while not server.description:
                    server.receive(connection.recv(65536))
                    connection.sendall(server.take_output())
                client.stdin.write(b"R\n")
                client.stdin.flush()
                # What it gets is a warning. This client then breaks off.
                server.receive(connection.recv(65536))
                connection.sendall(server.take_output())
                with pytest.raises(TLSError, match="handshake failure"):
                    server.receive(connection.recv(65536))
            _, errors = client.communicate(timeout=60)
    assert b"no renegotiation" in errors.lower()
    good = setting.certificates.context.session_stats()["accept_good"]
    assert good == before + 1


class Forger:
    """The client of a TLS 1.3 connection, record by record (RFC 8446 sections 5.2, 7.2 and 7.3)."""

    def __init__(self, setting: Setting, keys: Path) -> None:
        context = setting.authority.client(V1_3, V1_3)
        context.keylog_filename = str(keys)
        self.server = TLSStream(setting.certificates.context)
        Client(self.server, context).shake_hands()
        (line,) = re.findall("CLIENT_TRAFFIC_SECRET_0 .* (.*)", keys.read_text())
        self._begin(bytes.fromhex(line))

    def _begin(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._key, self._iv = self._derived(b"key", 32), self._derived(b"iv", 12)

    def _derived(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(hashes.SHA384(), size, info).derive(self._secret)

    def record(self, kind: int, content: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        nonce = int.from_bytes(self._iv, "big") ^ self._number
        self._number += 1
        sealed = AESGCM(self._key).encrypt(nonce.to_bytes(12, "big"), content + bytes([kind]), head)
        return head + sealed

    def data(self, plain: bytes) -> bytes:
        return self.record(0x17, plain)

    def key_update(self, answer: bool) -> bytes:
        octets = self.record(0x16, b"\x18\0\0\x01" + bytes([answer]))
        self._begin(self._derived(b"traffic upd", 48))
        return octets


def test_a_new_key(setting: Setting, tmp_path: Path) -> None:
    forger = Forger(setting, tmp_path / "keys")
    forger.server.take_output()
    assert forger.server.receive(forger.data(b"EHLO a\r\n")) == b"EHLO a\r\n"
    octets = b"".join(forger.key_update(answer=True) for _ in range(10))
    assert forger.server.receive(octets) == b""
    assert len(forger.server.take_output()) >= 9 * 27  # the last one waits for the next read
    assert forger.server.receive(forger.data(b"NOOP\r\n")) == b"NOOP\r\n"


@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("drained", [False, True])
def test_a_flood_of_new_keys(setting: Setting, tmp_path: Path, answer: bool, drained: bool) -> None:
    """Each is 27 octets, as is its answer, and costs as much as a hundred commands."""
    forger = Forger(setting, tmp_path / "keys")
    with pytest.raises(TLSError, match="nothing said"):
        for _ in range(65536 // 27 + 10):
            forger.server.receive(forger.key_update(answer))
            if drained:
                forger.server.take_output()


def test_a_flood_of_new_keys_in_a_message(setting: Setting, tmp_path: Path) -> None:
    """Something is said again and again, and what OpenSSL answers is not taken meanwhile."""
    forger = Forger(setting, tmp_path / "keys")
    with pytest.raises(TLSError, match="nothing said"):
        for _ in range(65536 // 27 + 10):
            forger.server.receive(forger.key_update(answer=True) + forger.data(b"x"))
    assert len(forger.server.take_output()) < 70_000


def test_records_of_one_octet(setting: Setting, tmp_path: Path) -> None:
    forger = Forger(setting, tmp_path / "keys")
    for _ in range(10_000):
        assert forger.server.receive(forger.data(b"x")) == b"x"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(octets=st.binary(max_size=200), cut=st.integers(0, 200))
@example(octets=b"\x16\x03\x01\x00\x00" * 40, cut=50)
def test_any_octets(setting: Setting, octets: bytes, cut: int) -> None:
    server = TLSStream(setting.certificates.context)
    try:
        assert server.receive(b"\x16" + octets[:cut]) == b""
        assert server.receive(octets[cut:]) == b""
    except TLSError as error:
        assert str(error)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from([NAME, "mx.example.net", None]))
def test_a_damaged_hello(setting: Setting, data: st.DataObject, name: str | None) -> None:
    hello = bytearray(client_hello(setting, name))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(1, len(hello) - 1))
        hello[position] = data.draw(st.integers(0, 255))
    server = TLSStream(setting.certificates.context)
    try:
        assert server.receive(bytes(hello)) == b""
    except TLSError as error:
        assert str(error)


# Names.


@VERSIONS
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (NAME, [NAME]),
        ("mx.example.net", ["mx.example.net"]),
        ("MX.EXAMPLE.NET", ["mx.example.net"]),
        ("mx.example.net.", ["mx.example.net"]),
        ("other.example.net", ["*.example.net"]),
        ("a.b.example.net", [NAME]),
        ("example.net", [NAME]),
        ("unknown.example.com", [NAME]),
        ("net", [NAME]),
        ("192.0.2.1", [NAME]),  # is not sent: RFC 6066 section 3
        (None, [NAME]),
    ],
)
def test_the_certificate_by_name(
    setting: Setting, version: ssl.TLSVersion, name: str | None, shown: list[str]
) -> None:
    context = setting.authority.client(version, version)
    context.check_hostname = False
    client = Client(TLSStream(setting.certificates.context), context, name)
    client.shake_hands()
    assert client.names() == shown


@pytest.mark.parametrize(
    "other", [b"m\xff.example.net", b"m\x00.example.net", b"..............", b" " * 14]
)
def test_a_name_that_is_none(
    setting: Setting, other: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    hello = client_hello(setting, "mx.example.net")
    assert hello.count(b"mx.example.net") == 1
    server = TLSStream(setting.certificates.context)
    try:
        server.receive(hello.replace(b"mx.example.net", other))
        assert server.take_output()[0] == 0x16
    except TLSError:
        assert server.take_output()[0] == 0x15
    # Nobody is to fill a log by such names.
    assert capfd.readouterr() == ("", "")


# Resumption.


@VERSIONS
@pytest.mark.parametrize("name", [NAME, "mx.example.net", "other.example.net"])
def test_a_session_is_resumed(setting: Setting, version: ssl.TLSVersion, name: str) -> None:
    context = setting.authority.client(version, version)
    first = Client(TLSStream(setting.certificates.context), context, name)
    first.shake_hands()
    assert not first.tls.session_reused
    assert first.tls.session is not None and first.tls.session.has_ticket
    second = Client(TLSStream(setting.certificates.context), context, name, first.tls.session)
    second.shake_hands()
    assert second.tls.session_reused
    assert second.server.description == first.server.description
    assert second.say(b"EHLO a\r\n") == b"EHLO a\r\n"


@VERSIONS
def test_a_session_is_resumed_in_another_process(setting: Setting, version: ssl.TLSVersion) -> None:
    context = setting.authority.client(version, version)
    first = Client(TLSStream(setting.certificates.context), context)
    first.shake_hands()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            serve_one(theirs, setting.certificates)
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(60)
    try:
        with context.wrap_socket(
            ours, server_hostname=NAME, session=first.tls.session
        ) as connection:
            assert connection.recv(100) == b"220 mx\r\n"
            assert connection.session_reused
    finally:
        os.waitpid(child, 0)


def serve_one(connection: socket.socket, certificates: Certificates) -> None:
    """Say 220 to a client, and wait until it goes."""
    connection.settimeout(60)
    server = TLSStream(certificates.context)
    while not server.description:
        server.receive(connection.recv(65536))
        connection.sendall(server.take_output())
    server.send(b"220 mx\r\n")
    connection.sendall(server.take_output())
    while connection.recv(65536):
        pass


@VERSIONS
def test_a_session_with_another_name_begins_anew(setting: Setting, version: ssl.TLSVersion) -> None:
    context = setting.authority.client(version, version)
    first = Client(TLSStream(setting.certificates.context), context)
    first.shake_hands()
    second = Client(
        TLSStream(setting.certificates.context), context, "mx.example.net", first.tls.session
    )
    second.shake_hands()
    assert not second.tls.session_reused
    assert second.names() == ["mx.example.net"]


# Files.


def certificates(authority: Authority, **settings: Any) -> Certificates:
    return Certificates(authority.pair(NAME, **settings), {})


@pytest.mark.parametrize(
    "settings",
    [{"kind": "rsa"}, {"kind": "ecdsa"}, {"one_file": True}, {"kind": "rsa", "one_file": True}],
)
def test_pairs_that_are_good(tmp_path: Path, settings: dict[str, Any]) -> None:
    authority = Authority(tmp_path)
    client = Client(TLSStream(certificates(authority, **settings).context), authority.client())
    client.shake_hands()
    assert client.names() == [NAME]


def test_an_expired_certificate_is_shown_all_the_same(tmp_path: Path) -> None:
    """Most who send mail do not look, and the others shall know what is wrong."""
    authority = Authority(tmp_path)
    client = Client(TLSStream(certificates(authority, days=(-10, -1)).context), authority.client())
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        client.shake_hands()


def damaged(pair: Pair) -> Pair:
    file = Path(pair.certificate)
    lines = file.read_bytes().splitlines(True)
    file.write_bytes(b"".join([*lines[:2], b"%%%%\n", *lines[4:]]))
    return pair


def der(pair: Pair) -> Pair:
    file = Path(pair.certificate)
    file.write_bytes(ssl.PEM_cert_to_DER_cert(file.read_text()))
    return pair


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda ca: Pair(f"{ca.directory}/none.pem", ""),
            "{dir}/none.pem: the certificate cannot be read: No such file or directory",
        ),
        (
            lambda ca: ca.pair(NAME)._replace(key=f"{ca.directory}/none.key"),
            "{dir}/none.key: the private key cannot be read: No such file or directory",
        ),
        (
            lambda ca: Pair(str(ca.directory), ""),
            "{dir}: not a file; write the path of a certificate in PEM",
        ),
        (
            lambda ca: Pair("/dev/zero", ""),
            "/dev/zero: not a file; write the path of a certificate in PEM",
        ),
        (
            lambda ca: Pair("a\0b", ""),
            "'a\\x00b': not the path of a file",
        ),
        (
            lambda ca: ca.pair(NAME)._replace(key=""),
            "{dir}/mail.example.org.pem: no private key in PEM in it;"
            " PEM is text, with -----BEGIN PRIVATE KEY-----;"
            " are certificate and key swapped, or is key = missing?",
        ),
        (
            lambda ca: der(ca.pair(NAME)),
            "{dir}/mail.example.org.pem: no certificate in PEM in it;"
            " PEM is text, with -----BEGIN CERTIFICATE-----",
        ),
        (
            lambda ca: Pair(ca.pair(NAME).certificate, ca.pair("mx.example.net").key),
            "{dir}/mx.example.net.key: not the key of the first certificate in"
            " {dir}/mail.example.org.pem; the server's own certificate comes first, then its chain",
        ),
        (
            lambda ca: Pair(ca.pair(NAME).certificate, ca.pair("mx.example.net", kind="rsa").key),
            "{dir}/mx.example.net.key: not the key of the first certificate in"
            " {dir}/mail.example.org.pem; the server's own certificate comes first, then its chain",
        ),
        (
            lambda ca: ca.pair(NAME, passphrase=b"secret"),
            "{dir}/mail.example.org.key: the key is encrypted, and nobody is asked for its"
            " passphrase; write it without one: openssl pkey -in {dir}/mail.example.org.key"
            " -out NEW",
        ),
        (
            lambda ca: ca.pair(NAME, passphrase=b"secret", one_file=True),
            "{dir}/mail.example.org.pem: the key is encrypted, and nobody is asked for its"
            " passphrase; write it without one: openssl pkey -in {dir}/mail.example.org.pem"
            " -out NEW",
        ),
        (
            lambda ca: ca.pair(NAME, kind="rsa", bits=1024),
            "{dir}/mail.example.org.pem: ee key too small: OpenSSL refuses it; make a new one,"
            " RSA 2048 or ECDSA",
        ),
        (
            lambda ca: damaged(ca.pair(NAME)),
            "{dir}/mail.example.org.pem: the certificate or its key"
            " {dir}/mail.example.org.key is damaged",
        ),
    ],
)
def test_pairs_that_are_not(
    tmp_path: Path, make: Callable[[Authority], Pair], message: str
) -> None:
    authority = Authority(tmp_path)
    good, bad = authority.pair("good.example.org"), make(authority)
    for default, by_name in ((bad, {}), (good, {"bad.example.org": bad})):
        with pytest.raises(CertificateError) as raised:
            Certificates(default, by_name)
        assert str(raised.value) == message.format(dir=tmp_path)


def test_a_file_that_is_no_pem_for_certain(tmp_path: Path) -> None:
    pair = Authority(tmp_path).pair(NAME)
    with open(pair.certificate, "ab") as file:
        file.write(b"\n" * (1 << 20))
    with pytest.raises(CertificateError, match="larger than 1 MiB"):
        Certificates(pair, {})


def test_a_file_that_may_not_be_read() -> None:
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        pair = Authority(Path(name)).pair(NAME)
        os.chmod(pair.key, 0)
        ours = os.geteuid()
        if ours == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(CertificateError, match="(?i)key cannot be read: permission denied"):
                Certificates(pair, {})
        finally:
            os.seteuid(ours)


def test_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, and wait for ever."""
    pair = Authority(tmp_path).pair(NAME, passphrase=b"secret")
    code = (
        "from gsmtpd.server.certificates import *\n"
        f"try: Certificates(Pair({pair.certificate!r}, {pair.key!r}), {{}})\n"
        "except CertificateError as error: print(error)\n"
    )
    master, terminal = os.openpty()
    with closing(os.fdopen(master, "rb", 0)) as screen:
        result = subprocess.run(
            [sys.executable, "-c", f"import os; os.setsid(); os.open(os.ttyname(0), 2)\n{code}"],
            stdin=terminal,
            capture_output=True,
            timeout=60,
            check=True,
        )
        os.set_blocking(screen.fileno(), False)
        assert b"is encrypted" in result.stdout
        assert not screen.read()
        os.close(terminal)


def test_files_that_are_loaded_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old = certificates(authority)
    stream = TLSStream(old.context)
    client = Client(stream, authority.client())
    client.shake_hands()
    number = (client.tls.getpeercert() or {})["serialNumber"]
    authority.pair(NAME)
    new = old.again()
    # Whoever is there stays, and whoever comes is shown the new one.
    assert client.say(b"NOOP\r\n") == b"NOOP\r\n"
    another = Client(TLSStream(new.context), authority.client())
    another.shake_hands()
    assert (another.tls.getpeercert() or {})["serialNumber"] != number


def test_files_that_are_bad_when_loaded_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old = certificates(authority)
    Path(tmp_path, f"{NAME}.pem").write_text("")
    with pytest.raises(CertificateError):
        old.again()
    client = Client(TLSStream(old.context), authority.client())
    client.shake_hands()
    assert client.names() == [NAME]


def test_a_change_is_told_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    loaded = certificates(authority)
    assert [loaded.changed() for _ in range(3)] == [False, False, False]
    authority.pair(NAME)
    assert [loaded.changed() for _ in range(4)] == [False, True, False, False]
    authority.pair(NAME)
    assert [loaded.changed() for _ in range(3)] == [False, True, False]
    new = loaded.again()
    assert [new.changed() for _ in range(3)] == [False, False, False]


def test_a_change_settles_first(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    loaded = certificates(authority)
    new = authority.pair(NAME, file="new")
    Path(new.certificate).replace(tmp_path / f"{NAME}.pem")
    assert not loaded.changed()
    Path(new.key).replace(tmp_path / f"{NAME}.key")
    assert not loaded.changed()
    assert loaded.changed()
    loaded.again()


def test_a_change_that_is_taken_back(tmp_path: Path) -> None:
    """A directory that is moved: its files do not even get another time."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    loaded = certificates(Authority(here))
    for _ in range(2):
        here.rename(elsewhere)
        assert [loaded.changed() for _ in range(3)] == [False, True, False]
        with pytest.raises(CertificateError):
            loaded.again()
        elsewhere.rename(here)
        assert [loaded.changed() for _ in range(3)] == [False, False, False]


@pytest.mark.parametrize("which", ["default", "by name", "rights"])
def test_a_change_of_any_file(tmp_path: Path, which: str) -> None:
    authority = Authority(tmp_path)
    default, other = authority.pair(NAME), authority.pair("mx.example.net", one_file=True)
    loaded = Certificates(default, {"mx.example.net": other})
    if which == "default":
        authority.pair(NAME)
    elif which == "by name":
        authority.pair("mx.example.net", one_file=True)
    else:
        os.chmod(default.key, 0o640)
    assert [loaded.changed() for _ in range(3)] == [False, True, False]
