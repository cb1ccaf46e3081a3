"""How do octets get from a client and back? The only recv and send, in the clear or by TLS."""

from __future__ import annotations

import socket
import ssl
from fcntl import ioctl
from termios import FIONREAD

from gsmtpd.server.tls import TLSStream

CONTENT = 65536  # octets of one recv while a message comes in
COMMANDS = 4096  # of one while commands do: what is more waits in the kernel
_ENCRYPTED = 16384  # of one by TLS: much can be asked of OpenSSL with little
# It saves the ioctl that would make each socket non-blocking. Plain numbers: the enum is slower.
DONTWAIT = int(socket.MSG_DONTWAIT)
# The last octets, and the end of the connection behind them, go in one packet.
_LAST = DONTWAIT | int(socket.MSG_MORE)
_NONE = bytes(4)  # what FIONREAD says where nothing has come


class Stream:
    """Reads from and writes to `socket`, and never waits. Times: the caller's monotonic seconds.

    unsent: octets that the client has not made room for yet; unsent_since: since when there are
    any. secured_since: when TLS was agreed on. shaking_hands: whether it is not active yet.
    """

    __slots__ = ("_tls", "secured_since", "shaking_hands", "socket", "unsent", "unsent_since")

    def __init__(self, request: socket.socket) -> None:
        self.socket = request
        self.unsent = b""
        self.unsent_since = 0.0
        self.secured_since = 0.0
        self.shaking_hands = False
        self._tls: TLSStream | None = None

    def secure(self, context: ssl.SSLContext, now: float) -> None:
        """From here on all is TLS, beginning with the client's hello."""
        self._tls = TLSStream(context)
        self.shaking_hands = True
        self.secured_since = now

    def in_the_clear(self) -> None:
        """No TLS after all: the client does not speak it."""
        self._tls = None
        self.shaking_hands = False

    @property
    def tls(self) -> str:
        """Version and cipher, as in Envelope; "" without TLS, and before the handshake is over."""
        return "" if self._tls is None else self._tls.description

    def spoke_first(self) -> bool:
        """Whether the client has sent something already, which stays to be received."""
        try:
            return ioctl(self.socket.fileno(), FIONREAD, _NONE) != _NONE
        except OSError:
            return False

    def receive(self, most: int) -> bytes | None:
        """What has come, up to `most` octets, as it is: see `decrypt`.

        None where nothing has, b"" where the client has gone.
        """
        try:
            return self.socket.recv(most if self._tls is None else _ENCRYPTED, DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def decrypt(self, octets: bytes) -> bytes | None:
        """What the client says with `octets`; None if it has said its last. Raises TLSError.

        Where there is no TLS that is `octets`.
        """
        if self._tls is None:
            return octets
        plain = self._tls.receive(octets)
        self.shaking_hands = not self._tls.description
        return None if self._tls.ended and not plain else plain

    def send(self, plain: bytes, last: bool, now: float) -> bool:
        """Send `plain` behind what is unsent; True if no octet is left.

        last: whether nothing will follow, and the socket is closed or shut down next.
        Raises OSError and TLSError.
        """
        tls = self._tls
        if tls is not None:
            if plain:
                tls.send(plain)
            if last and tls.description:
                tls.close()
            plain = tls.take_output()
        before = self.unsent
        if before:
            plain = before + plain
        if not plain:
            return True
        try:
            sent = self.socket.send(plain, _LAST if last else DONTWAIT)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(plain):
            if before:
                self.unsent = b""
            return True
        self.unsent = plain[sent:]
        if not before:
            self.unsent_since = now
        return False
