"""How does a client get in? socketserver's hooks, without a thread per connection."""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gsmtpd.metrics import Counter, Counters, Overload
from gsmtpd.policy.crowd import Seat
from gsmtpd.policy.decision import Policy
from gsmtpd.policy.lookups import Lookups
from gsmtpd.policy.networks import ip_of
from gsmtpd.server.connection import Connection
from gsmtpd.server.pool import SMTPThreadPool
from gsmtpd.server.stream import DONTWAIT
from gsmtpd.server.terms import Limits, Manner
from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.storage.writer import GroupCommitWriter

if TYPE_CHECKING:
    from gsmtpd.handlers.hook_threads import MessageHook, RecipientHook

_log = logging.getLogger(__name__)

BACKLOG = 4096  # socketserver's 5 refuses a burst; the kernel caps this at net.core.somaxconn
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_BPF_RET = 6  # linux/bpf_common.h; with 0: take 0 octets of the packet
_LAST_ROUNDS = 256  # of accepting before the socket is closed: the whole backlog, and no more
ACCEPT_AT_ONCE = 16  # connections taken per round, so that those taken before are served as well


def share_port(listener: socket.socket, on: bool) -> None:
    """Let, or no longer let, other sockets of this user be bound to the port beside it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, on)


def overlook_clients(listener: socket.socket) -> None:
    """Have the kernel overlook further clients of `listener`: theirs asks again, a second later.

    Those who have come are still to be accepted. A client that comes between the last accept and
    the close of a socket would be reset; overlooked, it comes to the socket that takes its place.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))  # see socket(7), SO_ATTACH_FILTER
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def bind(host: str, port: int, share: bool = False) -> socket.socket:
    """A listening socket on `host` (an IPv4 or IPv6 address) and `port`. Raises OSError.

    share: whether it may be bound beside others that share the port, see `share_port`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Each send is a whole answer: nothing is gained by waiting.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        share_port(listener, share)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        share_port(listener, False)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class PolicyHolder(Protocol):
    """Has the policy that is in force by now."""

    current: Policy


class SMTPServer(socketserver.ThreadingTCPServer):
    """Serves the connections of one listening socket from a bounded pool of SMTP threads.

    listener: bound and listening, or None where clients are accepted elsewhere. policy decides
    clients and recipients, with what lookups find out. writer: None answers every message with 250
    and keeps nothing. crowd: counts the connections of each address. rcpt_hook, data_hook: who may
    refuse what policy takes, if there is anybody. clock: Unix time in seconds.
    rules and limits may be replaced; new sessions get the new ones.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        pool: SMTPThreadPool,
        rules: Rules,
        limits: Limits,
        policy: PolicyHolder,
        lookups: Lookups,
        writer: GroupCommitWriter | None,
        new_id: Callable[[], str],
        counters: Counters,
        crowd: Seat,
        manner: Manner,
        rcpt_hook: RecipientHook | None = None,
        data_hook: MessageHook | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # Bound by the master, before it dropped root and forked.
        address = ("", 0) if listener is None else listener.getsockname()[:2]
        super().__init__(address, Connection, bind_and_activate=False)  # type: ignore[arg-type]
        self.listening = listener is not None
        if listener is not None:
            self.socket.close()
            self.socket = listener
        self._family = int(self.socket.family)
        self.pool = pool
        self.rules = rules
        self.limits = limits
        self.policy = policy
        self.lookups = lookups
        self.writer = writer
        self.new_id = new_id
        self.clock = clock
        self.crowd = crowd
        self.manner = manner
        self.rcpt_hook = rcpt_hook
        self.data_hook = data_hook
        self._counters = counters
        self._accepting = 0  # SMTP threads that accept for it
        self._lock = threading.Lock()

    def accepted_by_one_more(self) -> None:
        """One SMTP thread more accepts for it."""
        with self._lock:
            self._accepting += 1

    def accepted_by_one_less(self) -> None:
        """An SMTP thread accepts no more for it; the last one takes what waits, and closes it.

        Of each connection EPOLLEXCLUSIVE told one process, and that may have been this one. And
        the last process to close the socket resets who still waits: so nothing stands between.
        """
        with self._lock:
            self._accepting -= 1
            last = not self._accepting
        if last:
            with suppress(OSError):
                for _ in range(_LAST_ROUNDS):
                    if not self.accept_waiting():
                        break
            self.server_close()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection. Raises OSError.

        As a socket of C alone: that of `socket.accept` costs two enums and a class in Python more.
        """
        descriptor, address = self.socket._accept()  # type: ignore[attr-defined]
        return socket.SocketType(self._family, socket.SOCK_STREAM, 0, descriptor), address

    def accept_waiting(self) -> bool:
        """Take connections that wait; True if there may be more of them.

        Raises OSError where no descriptor is left.
        """
        for _ in range(ACCEPT_AT_ONCE):
            try:
                request, client_address = self.get_request()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                return True  # this connection's own network trouble, see accept(2)
            self.take(request, client_address)
        return True

    def take(self, request: Any, client_address: Any) -> None:
        """Serve a connection that was accepted, here or elsewhere. Call it in an SMTP thread."""
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                self.shutdown_request(request)
        except Exception:
            self.handle_error(request, client_address)
            self.shutdown_request(request)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the client may come, and there is room; else it hears why, never silence."""
        ip = ip_of(client_address)
        thread = self.pool.current()
        refusal = None if self.expects_header(ip) else self.refusal_of(ip)
        if refusal is None:
            if not self._full():
                return True
            refusal = reply.TOO_MANY_CLIENTS
            thread.counters[Counter.TURNED_AWAY] += 1
            message = "max_clients = %d reached: answering 421"
            most = self.limits.max_clients
            thread.overloads.enter(Overload.CLIENTS, self._full, message, most)
        elif refusal is reply.CLIENT_DENIED:
            thread.maillog.closed(ip, "", refusal)
        thread.count_refusal(refusal)
        self._send_away(request, refusal)
        return False

    def _full(self) -> bool:
        return self._counters.total(Counter.CLIENTS) >= self.limits.max_clients

    def expects_header(self, ip: str) -> bool:
        """Whether a connection from `ip` begins with a header of the PROXY protocol."""
        return bool(self.manner.proxies.match(ip))

    def counts(self, ip: str) -> bool:
        """Whether the connections of the client `ip` are counted for max_clients_per_ip."""
        if self.limits.max_clients_per_ip is None:
            return False
        return not self.policy.current.allow.match(ip)

    def refusal_of(self, ip: str) -> Reply | None:
        """Why one more connection of the client `ip` is not served, if it is not."""
        thread = self.pool.current()
        if self.policy.current.denies(ip):
            thread.counters[Counter.DENIED] += 1
            return reply.CLIENT_DENIED
        return self.crowd_refusal(ip, self.crowd.count(ip) + 1) if self.counts(ip) else None

    def crowd_refusal(self, ip: str, connections: int) -> Reply | None:
        """Why the client `ip` is not served, if it has too many `connections` with this one."""
        most = self.limits.max_clients_per_ip
        if most is None or connections <= most:
            return None
        thread = self.pool.current()
        thread.counters[Counter.CROWDED] += 1
        lasts = partial(self._crowded, ip, most)
        message = "%s has max_clients_per_ip = %d connections: answering 421 to such addresses"
        thread.overloads.enter(Overload.CLIENTS_PER_IP, lasts, message, ip, most)
        return reply.TOO_MANY_FROM_YOU

    def _crowded(self, ip: str, most: int) -> bool:
        return self.crowd.count(ip) >= most

    def _send_away(self, request: Any, farewell: Reply) -> None:
        with suppress(OSError):
            request.send(farewell.wire, DONTWAIT)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection to the pool: no thread is started."""
        self.finish_request(request, client_address)

    def service_actions(self) -> None:
        """About once a second: help mail out from behind a slow commit."""
        if self.writer is not None:
            self.writer.poke()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a fault of ours; the server goes on."""
        _log.exception("fault while taking the connection of %s", client_address)
