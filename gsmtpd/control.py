"""How is a running gsmtpd asked? A line of JSON each way over a Unix socket of mode 0600.

A request is `{"command": "status"}`, "reload" or "stop", or `{"command": "why", "about": ADDRESS}`,
or "history" about "SECONDS STEP".
The answer comes when there is something to say; where the server ends first, the connection ends
with it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import selectors
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

MAX_LINE = 4096  # octets of a request
MAX_CLIENTS = 16
SILENCE = 5.0  # seconds a client may take to ask, and to read the answer

Answer = Callable[[dict[str, Any]], None]
Handler = Callable[[str, str, Answer], None]


class ControlError(Exception):
    """A control socket cannot be had, or nobody answers at it; the text is one clear line.

    permission: whether rights are what is missing.
    """

    def __init__(self, text: str, permission: bool = False) -> None:
        super().__init__(text)
        self.permission = permission


class ControlServer:
    """Listens at `path`, in the loop of `selector`, whose keys' data are functions to call.

    handle: called with each command, what it is about ("" where it does not say), and a function
    that takes the answer to it, now or later.
    Raises ControlError.
    """

    def __init__(self, path: str, selector: selectors.BaseSelector, handle: Handler) -> None:
        self._path = path
        self._selector = selector
        self._handle = handle
        # What each has said so far, and since when it is waited for.
        self._clients: dict[socket.socket, tuple[bytes, float]] = {}
        self._unsent: dict[socket.socket, bytes] = {}  # what is left of an answer
        self._listener = _listen(path)
        self._identity = os.stat(path)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Stop listening, hang up, and remove the socket unless another has taken its place."""
        self.close_copies()
        with suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._identity):
                os.unlink(self._path)

    def close_copies(self) -> None:
        """Close this process's descriptors, behind a fork."""
        for client in self._clients:
            client.close()
        self._listener.close()

    def sweep(self) -> None:
        """Hang up on those who do not ask, or do not read. Call it about once a second."""
        for client, (_, since) in list(self._clients.items()):
            if time.monotonic() - since > SILENCE:
                self._hang_up(client)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            with suppress(OSError):
                client.send(_line({"error": f"{MAX_CLIENTS} others ask already; try again"}))
            client.close()
            return
        self._clients[client] = b"", time.monotonic()
        self._selector.register(client, selectors.EVENT_READ, lambda: self._read(client))

    def _read(self, client: socket.socket) -> None:
        if client not in self._clients or client in self._unsent:
            return  # hung up on, or answered, in this very round
        said, since = self._clients[client]
        try:
            octets = client.recv(MAX_LINE)
        except OSError:
            octets = b""
        line, end, _ = (said + octets).partition(b"\n")
        if not octets or len(line) > MAX_LINE:
            self._hang_up(client)
        elif not end:
            self._clients[client] = line, since
        else:
            # It has asked, and may wait as long as the answer takes.
            self._clients[client] = b"", float("inf")
            self._handle(*_request(line), lambda answer: self._answer(client, answer))

    def _answer(self, client: socket.socket, answer: dict[str, Any]) -> None:
        if client in self._clients:
            self._clients[client] = b"", time.monotonic()
            self._unsent[client] = _line(answer)
            self._selector.modify(client, selectors.EVENT_WRITE, lambda: self._write(client))
            self._write(client)

    def _write(self, client: socket.socket) -> None:
        if client not in self._unsent:
            return  # hung up on in this very round
        try:
            self._unsent[client] = self._unsent[client][client.send(self._unsent[client]) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent[client] = b""
        if not self._unsent[client]:
            self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        del self._clients[client]
        self._unsent.pop(client, None)
        self._selector.unregister(client)
        client.close()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _request(line: bytes) -> tuple[str, str]:
    """The command and what it is about; "" for what is not said."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(request, dict):
        return "", ""
    return str(request.get("command", "")), str(request.get("about", ""))


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        _bind(listener, path)
        listener.listen(MAX_CLIENTS)
        listener.setblocking(False)
        return listener
    except OSError as error:
        listener.close()
        used = error.errno == errno.EADDRINUSE
        reason = "another gsmtpd uses it, or it is a file" if used else error.strerror or error
        raise ControlError(
            f"cannot make the control socket {path}: {reason}; set [server] control_socket to a"
            " path in a directory that gsmtpd's user may write",
            isinstance(error, PermissionError),
        ) from error
    finally:
        os.umask(mask)


def _bind(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _stale(path):
            raise
        os.unlink(path)
        listener.bind(path)


def _stale(path: str) -> bool:
    """Whether `path` is a socket that nobody listens at any more."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


@contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except PermissionError as error:
            raise ControlError(
                f"{path}: permission denied; run it as root or as the user of gsmtpd", True
            ) from error
        except OSError as error:
            reason = error.strerror or error
            raise ControlError(
                f"no gsmtpd answers at {path} ({reason}); is it running, and is this its"
                " configuration? Name it with -c"
            ) from error
        yield client


def ask(path: str, command: str, seconds: float, about: str = "") -> dict[str, Any]:
    """The answer of the gsmtpd that listens at `path`. about: what the command is about, if it is.

    Raises ControlError if nobody is there, or gives no answer within `seconds`.
    """
    with _connected(path) as client:
        answer = _answer_to(client, command, seconds, about)
    if answer is None:
        raise ControlError(f"{path}: gsmtpd ended before it answered")
    if "error" in answer:
        raise ControlError(f"{path}: gsmtpd says: {answer['error']}")
    return answer


def ask_to_stop(path: str, seconds: float) -> None:
    """Stop the gsmtpd that listens at `path`, and wait until its master process has ended.

    Raises ControlError if nobody is there, or is still there after `seconds`.
    """
    with _connected(path) as client:
        master = _process_of(client)
        answer = _answer_to(client, "stop", seconds)
    if answer is not None:
        raise ControlError(f"{path}: gsmtpd says: {answer.get('error', answer)}")
    if master >= 0 and not select.select([master], [], [], seconds)[0]:
        raise ControlError(f"{path}: gsmtpd has not ended within {seconds:g} s")


def _process_of(client: socket.socket) -> int:
    """A pidfd of the process that listens; -1 if it is gone."""
    size = struct.calcsize("3i")
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    try:
        return os.pidfd_open(struct.unpack("3i", credentials)[0])
    except OSError:
        return -1


def _answer_to(
    client: socket.socket, command: str, seconds: float, about: str = ""
) -> dict[str, Any] | None:
    """The answer to `command`; None if the connection ends without one."""
    client.settimeout(seconds)
    said = b""
    try:
        with suppress(BrokenPipeError):  # it may have answered already, that it cannot
            client.sendall(_line({"command": command} | ({"about": about} if about else {})))
        while octets := client.recv(65536):
            said += octets
    except TimeoutError as error:
        raise ControlError(f"gsmtpd gave no answer within {seconds:g} s") from error
    except OSError:
        pass  # it ended
    if not said.endswith(b"\n"):
        return None
    answer: dict[str, Any] = json.loads(said)
    return answer
