"""Do octets get from a client and back, in the clear and by TLS, without a wait?"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest

from gsmtpd.server.certificates import Certificates
from gsmtpd.server.stream import CONTENT, Stream
from gsmtpd.server.tls import TLSError
from tests.certificates import Authority

NAME = "mx.example.com"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Stream]]:
    """A client's socket, and the stream of its server."""
    client, server = socket.socketpair()
    with client, server:
        yield client, Stream(server)


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, Stream]]:
    """The same by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, Stream(server)


class TLSPeer:
    """A client that speaks TLS on a socket, beside its server in one thread."""

    def __init__(self, link: socket.socket, authority: Authority) -> None:
        self._link = link
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = authority.client()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)

    def carry(self) -> None:
        """Send what waits, and take what has come."""
        if waiting := self._outgoing.read():
            self._link.sendall(waiting)
        with suppress(BlockingIOError):
            while data := self._link.recv(65536, socket.MSG_DONTWAIT):
                self._incoming.write(data)

    def shake_hands(self, stream: Stream) -> None:
        """Until both sides are done."""
        while stream.shaking_hands:
            with suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            self.carry()
            octets = stream.receive(CONTENT)
            if octets:
                assert stream.decrypt(octets) == b""
            stream.send(b"", False, 0.0)
        self.carry()

    def read(self) -> bytes:
        """What has come; b"" at the end. Raises ssl.SSLWantReadError where nothing has."""
        self.carry()
        return self.tls.read()

    def say(self, plain: bytes) -> None:
        """Send `plain`."""
        self.tls.write(plain)
        self.carry()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    return Certificates(authority.pair(NAME), {}).context


# In the clear


def test_nothing_has_come(pair: tuple[socket.socket, Stream]) -> None:
    _, stream = pair
    assert stream.receive(CONTENT) is None
    assert not stream.spoke_first()


def test_what_has_come(pair: tuple[socket.socket, Stream]) -> None:
    client, stream = pair
    client.sendall(b"NOOP\r\n")
    assert stream.spoke_first()
    # It was looked at only.
    assert stream.receive(CONTENT) == b"NOOP\r\n"
    assert stream.decrypt(b"NOOP\r\n") == b"NOOP\r\n"
    assert stream.tls == ""


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_the_last_words_go_with_the_end(connected: tuple[socket.socket, Stream], how: str) -> None:
    """They are held back for it, and never for longer."""
    client, stream = connected
    assert stream.send(b"221 2.0.0 Bye\r\n", True, 0.0)
    with pytest.raises(BlockingIOError):
        client.recv(100, socket.MSG_DONTWAIT)
    if how == "close":
        stream.socket.close()
    else:
        stream.socket.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b"221 2.0.0 Bye\r\n"
    assert client.recv(100) == b""


def test_what_is_not_the_last_goes_at_once(connected: tuple[socket.socket, Stream]) -> None:
    client, stream = connected
    for _ in range(3):
        assert stream.send(b"250 2.0.0 Ok\r\n", False, 0.0)
        assert client.recv(100, socket.MSG_DONTWAIT) == b"250 2.0.0 Ok\r\n"


def test_a_client_that_has_gone(pair: tuple[socket.socket, Stream]) -> None:
    client, stream = pair
    client.close()
    assert not stream.spoke_first()
    assert stream.receive(CONTENT) == b""
    with pytest.raises(OSError, match="pipe"):
        stream.send(b"250 Ok\r\n", False, 0.0)


def test_a_reset_is_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with server:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            assert Stream(server).receive(CONTENT) == b""


def test_a_client_that_does_not_read(pair: tuple[socket.socket, Stream]) -> None:
    client, stream = pair
    sent = b""
    now = 0.0
    while not stream.unsent:
        now += 1
        sent += b"%07d " % now * 1000
        assert stream.send(sent[-8000:], False, now) is (not stream.unsent)
    assert stream.unsent_since == now
    # What follows stands behind it, and its time is the first one's.
    assert not stream.send(b"the end", True, now + 1)
    assert stream.unsent_since == now
    heard = b""
    while not stream.send(b"", True, now + 2):
        heard += client.recv(4096)
    stream.socket.close()
    while data := client.recv(65536):
        heard += data
    assert heard == sent + b"the end"


def test_its_time_begins_anew(pair: tuple[socket.socket, Stream]) -> None:
    client, stream = pair
    for now in (1.0, 2.0):
        assert not stream.send(b"x" * (1 << 22), False, now)
        assert stream.unsent_since == now
        while not stream.send(b"", False, now + 0.5):
            client.recv(1 << 20)


# By TLS


def test_tls(
    pair: tuple[socket.socket, Stream], authority: Authority, context: ssl.SSLContext
) -> None:
    client, stream = pair
    stream.secure(context, 7.0)
    assert (stream.shaking_hands, stream.secured_since, stream.tls) == (True, 7.0, "")
    peer = TLSPeer(client, authority)
    peer.shake_hands(stream)
    assert stream.tls == "TLSv1.3:TLS_AES_256_GCM_SHA384"
    peer.say(b"EHLO client.example\r\n")
    octets = stream.receive(CONTENT)
    assert octets is not None
    assert b"EHLO" not in octets
    assert stream.decrypt(octets) == b"EHLO client.example\r\n"
    assert stream.send(b"250 mx.example.com\r\n", False, 8.0)
    assert peer.read() == b"250 mx.example.com\r\n"


def test_the_last_words_end_tls(
    pair: tuple[socket.socket, Stream], authority: Authority, context: ssl.SSLContext
) -> None:
    client, stream = pair
    stream.secure(context, 0.0)
    peer = TLSPeer(client, authority)
    peer.shake_hands(stream)
    assert stream.send(b"221 2.0.0 Bye\r\n", True, 1.0)
    stream.socket.close()
    assert peer.read() == b"221 2.0.0 Bye\r\n"
    # close_notify: nothing was cut off (RFC 8446 section 6.1). Without it this would raise.
    assert peer.read() == b""


def test_a_client_that_ends_tls(
    pair: tuple[socket.socket, Stream], authority: Authority, context: ssl.SSLContext
) -> None:
    client, stream = pair
    stream.secure(context, 0.0)
    peer = TLSPeer(client, authority)
    peer.shake_hands(stream)
    peer.tls.write(b"QUIT\r\n")
    with suppress(ssl.SSLWantReadError):
        peer.tls.unwrap()
    peer.carry()
    octets = stream.receive(CONTENT)
    assert octets is not None
    # What it said before is still heard.
    assert stream.decrypt(octets) == b"QUIT\r\n"
    assert stream.decrypt(b"") is None


def test_what_is_no_tls(pair: tuple[socket.socket, Stream], context: ssl.SSLContext) -> None:
    client, stream = pair
    stream.secure(context, 0.0)
    with pytest.raises(TLSError):
        stream.decrypt(b"EHLO client.example\r\n")
    stream.in_the_clear()
    assert not stream.shaking_hands
    assert stream.send(b"554 5.5.1 \r\n", True, 0.0)
    assert client.recv(100) == b"554 5.5.1 \r\n"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_an_alert_says_why(
    pair: tuple[socket.socket, Stream], authority: Authority, context: ssl.SSLContext
) -> None:
    client, stream = pair
    stream.secure(context, 0.0)
    old = authority.client(ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1)
    old.set_ciphers("ALL:@SECLEVEL=0")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = old.wrap_bio(incoming, outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with pytest.raises(TLSError):
        stream.decrypt(outgoing.read())
    stream.send(b"", False, 0.0)
    incoming.write(client.recv(100))
    with pytest.raises(ssl.SSLError, match="(?i)alert protocol version"):
        tls.do_handshake()


def test_replies_that_are_not_read_by_tls(
    pair: tuple[socket.socket, Stream], authority: Authority, context: ssl.SSLContext
) -> None:
    client, stream = pair
    stream.secure(context, 0.0)
    peer = TLSPeer(client, authority)
    peer.shake_hands(stream)
    said = b"250 2.0.0 Ok\r\n" * 100_000
    assert not stream.send(said, False, 5.0)
    assert stream.unsent_since == 5.0
    heard = b""
    while len(heard) < len(said):
        stream.send(b"", False, 6.0)
        with suppress(ssl.SSLWantReadError):
            while True:
                heard += peer.read()
    assert heard == said
    assert stream.unsent == b""
