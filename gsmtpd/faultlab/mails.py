"""What is in the mails that are sent? All of it comes from a seed and their ids.

Who knows the seed makes a mail again, octet for octet: only its id is of the run.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b

MARK = b"Message-ID: <fl."
"""How each mail begins: behind it stands the id, then `TAIL`."""
TAIL = b"@faultlab.invalid>\r\n"
MIN_SIZE = 300
MAX_RECIPIENTS = 4
UID = re.compile(r"([0-9a-f]+)-(\d+)-(\d+)")
_POOL = 512 * 1024  # octets that bodies are cut out of
_OCTETS = bytes(set(range(256)) - {0, 10, 13})  # of lines; NUL and bare CR and LF are for others
# How large mails are: of 65536, so many at most are below so many octets, evenly from those before.
_SIZES = ((58982, MIN_SIZE, 1500), (64880, 1500, 8000), (65523, 8000, 40_000))


def uid_of(run: str, sender: int, number: int) -> str:
    """The id of a mail: unique wherever it is sent."""
    return f"{run}-{sender}-{number}"


def uid_in(mail: bytes) -> str | None:
    """The id of the mail of a fault lab that begins somewhere in these octets, if one does."""
    begin = mail.find(MARK)
    if begin < 0:
        return None
    end = mail.find(TAIL, begin, begin + 100)
    return None if end < 0 else mail[begin + len(MARK) : end].decode("ascii", "replace")


class Mails:
    """Makes the mails of a sender. max_size: of one, in octets, at least MIN_SIZE."""

    def __init__(
        self, run: str, seed: int, sender: int, recipients: Sequence[str], max_size: int
    ) -> None:
        self._run = run
        self._key = f"{seed}-{sender}-"
        self._sender = sender
        self._recipients = tuple(dict.fromkeys(recipients))
        self._max_size = max_size
        self._pool, self._starts = _lines(seed, max(_POOL, 3 * max_size))

    def mail(self, number: int) -> Mail:
        """The mail of that number."""
        draw = self._draw(number)
        return Mail(
            number,
            uid_of(self._run, self._sender, number),
            self._to(draw),
            self._content(number, draw),
            draw >> 96,
        )

    def _draw(self, number: int) -> int:
        """128 bits, the same for each run."""
        digest = blake2b(f"{self._key}{number}".encode(), digest_size=16).digest()
        return int.from_bytes(digest, "big")

    def _to(self, draw: int) -> tuple[str, ...]:
        """1 to 4 recipients; one is as frequent as all others together, and more."""
        dice = draw & 0xF
        count = 1 if dice < 10 else 2 if dice < 13 else 3 if dice < 15 else MAX_RECIPIENTS
        offered = len(self._recipients)
        first = (draw >> 4 & 0xFFF) % offered
        return tuple(self._recipients[(first + n) % offered] for n in range(min(count, offered)))

    def _content(self, number: int, draw: int) -> bytes:
        uid = uid_of(self._run, self._sender, number).encode()
        head = b"".join(
            (
                *(MARK, uid, TAIL),
                b"From: Fault lab <faultlab@example.org>\r\nTo: undisclosed-recipients:;\r\n",
                *(b"Subject: Fault lab ", uid, b"\r\nMIME-Version: 1.0\r\n"),
                b"Content-Type: text/plain; charset=iso-8859-1\r\n",
                b"Content-Transfer-Encoding: 8bit\r\n\r\n",
            )
        )
        least = max(2, MIN_SIZE - len(head))
        wanted = max(
            least, min(_size(draw >> 16 & 0xFFFF, draw >> 32 & 0xFFFF), self._max_size) - len(head)
        )
        # Whole lines, then one that fills up what is left: its length says nothing, it is of x.
        first = (draw >> 48 & 0xFFFFFF) % bisect_right(self._starts, len(self._pool) - wanted)
        begin = self._starts[first]
        end = self._starts[bisect_right(self._starts, begin + wanted - 2) - 1]
        fill = wanted - 2 - (end - begin)
        return b"%b%b%b\r\n" % (head, self._pool[begin:end], b"x" * fill)


class Mail:
    """A mail and how far it has come. dice: 32 bits of its own, for what is drawn about it."""

    __slots__ = ("attempt", "content", "dice", "number", "to", "uid")

    def __init__(
        self, number: int, uid: str, to: tuple[str, ...], content: bytes, dice: int
    ) -> None:
        self.number = number
        self.uid = uid
        self.to = to
        self.content = content
        self.dice = dice
        self.attempt = 0


def stuffed(content: bytes) -> bytes:
    """`content`, which ends with CRLF, as it travels behind DATA (RFC 5321 section 4.5.2)."""
    front = b"." if content.startswith(b".") else b""
    return front + content.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def _size(dice: int, even: int) -> int:
    for most, low, high in _SIZES:
        if dice < most:
            return low + (high - low) * even // 65536
    return 200 * 1024  # a few


def _lines(seed: int, size: int) -> tuple[bytes, list[int]]:
    """Lines as they come in 8-bit mail, some empty, some of a dot first, and where each begins."""
    draw = random.Random(f"faultlab {seed}")
    made: list[bytes] = []
    starts = [0]
    while starts[-1] < size:
        length = draw.choice((0, 1, 20, 40, 60, 72, 76, 78, 78, 78, 120, 980))
        line = bytes(draw.choices(_OCTETS, k=length))
        if draw.random() < 0.1:
            line = b"." * draw.randint(1, 3) + line
        made.append(line + b"\r\n")
        starts.append(starts[-1] + len(made[-1]))
    return b"".join(made), starts
