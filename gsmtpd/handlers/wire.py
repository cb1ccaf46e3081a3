"""How do the dispatcher and a runner talk? In frames over a pair of sockets.

A frame is a line of JSON, an object, which says how many octets of a message follow it.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

MAX_LINE = 16 << 20  # octets; the texts of replies are in it
_OCTETS = "octets"


class WireError(Exception):
    """The other end is gone, or says what is no frame."""


class NoFrameError(WireError):
    """The other end says what is no frame; the text says what."""


class Wire:
    """One end of the pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._heard = b""

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def say(self, frame: dict[str, Any], octets: bytes = b"", until: float | None = None) -> None:
        """Send a frame. until: monotonic seconds, None for ever.

        Raises TimeoutError and WireError.
        """
        line = json.dumps(frame | ({_OCTETS: len(octets)} if octets else {})).encode() + b"\n"
        try:
            self._wait_until(until)
            self._socket.sendall(line)
            if octets:
                self._wait_until(until)
                self._socket.sendall(octets)
        except TimeoutError:
            raise
        except OSError as error:
            raise WireError(str(error)) from error

    def hear(self, until: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next frame and its octets. until: monotonic seconds, None for ever.

        Raises TimeoutError and WireError.
        """
        while (end := self._heard.find(b"\n")) < 0:
            if len(self._heard) > MAX_LINE:
                raise NoFrameError("a line without an end")
            self._heard += self._receive(until)
        line, self._heard = self._heard[:end], self._heard[end + 1 :]
        try:
            frame = json.loads(line)
            wanted = int(frame.pop(_OCTETS, 0))
            if wanted < 0:
                raise ValueError(wanted)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise NoFrameError("a line that is no frame") from error
        pieces, size = [self._heard], len(self._heard)
        while size < wanted:
            pieces.append(self._receive(until))
            size += len(pieces[-1])
        heard = b"".join(pieces)
        self._heard = heard[wanted:]
        return frame, heard[:wanted]

    def _receive(self, until: float | None) -> bytes:
        try:
            self._wait_until(until)
            octets = self._socket.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError as error:
            raise WireError(str(error)) from error
        if not octets:
            raise WireError("it is closed")
        return octets

    def _wait_until(self, until: float | None) -> None:
        if until is None:
            self._socket.settimeout(None)
            return
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def close(self) -> None:
        """Close it; the other end hears that."""
        self._socket.close()
