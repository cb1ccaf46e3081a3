"""Where does the message end? Only `<CR><LF>.<CR><LF>` ends it (RFC 5321 section 4.1.1.4).

Every other dot, line end or control character is content, whatever other servers make of it:
that is the whole defence against SMTP smuggling (CVE-2023-51764).
"""

from __future__ import annotations

END_OF_DATA = b"\r\n.\r\n"


class DataReader:
    """Takes the bytes behind 354 and yields the message, unstuffed, in bounded memory.

    limit: the largest message kept, in octets; of a larger one only the end is looked for.
    size: octets of the message so far, without stuffed dots.
    """

    __slots__ = ("_held", "_kept", "_limit", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: bytes | bytearray = b""
        # The CRLF that ended the DATA command counts as the line end before a first dot.
        self._held = b"\r\n"
        self.size = -2

    @property
    def too_big(self) -> bool:
        """True once the message is larger than the limit."""
        return self.size > self._limit

    @property
    def kept(self) -> int:
        """Octets in memory."""
        return len(self._kept) + len(self._held)

    def feed(self, data: bytes) -> bytes | None:
        """Take `data`. Returns what stands behind the end of the message, None before the end."""
        if self._held:
            data = self._held + data
        end = data.find(END_OF_DATA)
        if end >= 0:
            self._keep(data[: end + 2])
            return data[end + 5 :]
        held = _unfinished_end(data)
        if held:
            self._held = data[-held:]
            self._keep(data[:-held])
        else:
            self._held = b""
            self._keep(data)
        return None

    def content(self) -> bytes:
        """The whole message, for use after `feed` found its end and where it is not `too_big`."""
        return bytes(memoryview(self._kept)[2:])

    def _keep(self, part: bytes) -> None:
        # No stuffed dot is ever cut in two: what could become one is held back.
        part = part.replace(b"\r\n.", b"\r\n")
        self.size += len(part)
        if self.size > self._limit:
            self._kept = b""
        elif not self._kept:
            self._kept = part
        else:
            if isinstance(self._kept, bytes):
                self._kept = bytearray(self._kept)
            self._kept += part


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
