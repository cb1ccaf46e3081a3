"""Where does the message end? Only `<CR><LF>.<CR><LF>` ends it (RFC 5321 section 4.1.1.4).

Every other dot, line end or control character is content, whatever other servers make of it:
that is the whole defence against SMTP smuggling (CVE-2023-51764). With BDAT the count of octets
alone ends it (RFC 3030).
"""

from __future__ import annotations

from gsmtpd.smtp.reply import Reply

END_OF_DATA = b"\r\n.\r\n"


_NOTHING = -3  # a limit that even a message without an octet is over


class _Reader:
    """Keeps what has come of a message, in bounded memory.

    limit: the largest message kept, in octets; of a larger one only the end is looked for.
    size: octets of the message so far. dropped: whether `drop` was called.
    """

    __slots__ = ("_kept", "_limit", "dropped", "size")

    def __init__(self, limit: int) -> None:
        self._kept: bytes | bytearray = b""
        self._limit = limit
        self.dropped = False
        self.size = 0

    @property
    def too_big(self) -> bool:
        """True once the message is larger than the limit, or is dropped."""
        return self.size > self._limit

    @property
    def kept(self) -> int:
        """Octets in memory."""
        return len(self._kept)

    def drop(self) -> None:
        """Forget what has come, and keep nothing of what still comes."""
        self.dropped = True
        self._limit = _NOTHING
        self._kept = b""

    def _keep(self, part: bytes) -> None:
        self.size += len(part)
        if self.size > self._limit:
            self._kept = b""
        elif not self._kept:
            self._kept = part
        else:
            if isinstance(self._kept, bytes):
                self._kept = bytearray(self._kept)
            self._kept += part


class DataReader(_Reader):
    """Takes the octets behind 354 and yields the message, unstuffed. size: without stuffed dots."""

    __slots__ = ("_held",)

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        # The CRLF that ended the DATA command counts as the line end before a first dot.
        self._held = b"\r\n"
        self.size = -2

    def feed(self, data: bytes) -> bytes | None:
        """Take `data`. Returns what stands behind the end of the message, None before the end."""
        if self._held:
            data = self._held + data
        end = data.find(END_OF_DATA)
        if end >= 0:
            self._unstuff(data[: end + 2])
            return data[end + 5 :]
        held = _unfinished_end(data)
        if held:
            self._held = data[-held:]
            self._unstuff(data[:-held])
        else:
            self._held = b""
            self._unstuff(data)
        return None

    def content(self) -> bytes:
        """The whole message, for use after `feed` found its end and where it is not `too_big`."""
        return bytes(memoryview(self._kept)[2:])

    def _unstuff(self, part: bytes) -> None:
        # No stuffed dot is ever cut in two: what could become one is held back.
        self._keep(part.replace(b"\r\n.", b"\r\n"))


class ChunkReader(_Reader):
    """Takes the octets behind BDAT (RFC 3030): as many as it says, whatever they are.

    last: whether the chunk that comes now, or came, ends the message. refusal: what its sender
    hears at the end of it, where it was refused.
    """

    __slots__ = ("_missing", "chunk", "last", "refusal")

    def __init__(self, limit: int, refusal: Reply | None = None) -> None:
        super().__init__(limit)
        self._missing = 0  # octets of the chunk still to come
        self.chunk = 0  # octets of the chunk
        self.last = False
        self.refusal = refusal

    def expect(self, octets: int, last: bool) -> None:
        """A chunk of `octets` begins."""
        self._missing = self.chunk = octets
        self.last = last

    def feed(self, data: bytes) -> bytes | None:
        """Take `data`. Returns what stands behind the end of the chunk, None before the end."""
        missing = self._missing
        self._keep(data if len(data) <= missing else data[:missing])
        self._missing = max(0, missing - len(data))
        return None if self._missing else data[missing:]

    def content(self) -> bytes:
        """The whole message, for use behind its last chunk and where it is not `too_big`."""
        return bytes(self._kept)


def _unfinished_end(data: bytes) -> int:
    """How many octets at the end of `data` may be the beginning of END_OF_DATA."""
    last = data[-1:]
    if last == b"\r":
        return 4 if data.endswith(b"\r\n.\r") else 1
    if last == b"\n":
        return 2 if data.endswith(b"\r\n") else 0
    if last == b".":
        return 3 if data.endswith(b"\r\n.") else 0
    return 0


def has_bare_newline(content: bytes) -> bool:
    """Whether `content` has a CR without LF or an LF without CR."""
    pairs = content.count(b"\r\n")
    return content.count(b"\n") != pairs or content.count(b"\r") != pairs
