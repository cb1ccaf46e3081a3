"""Who runs the connections? The bounded pool of SMTP threads, each with an epoll and many clients.

A thread never blocks: what may take long is done elsewhere, and the answer comes back through the
thread's inbox and its wake-up descriptor.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, Any

from gsmtpd.board import Slot
from gsmtpd.maillog import MailLog
from gsmtpd.metrics import Counter, Overload
from gsmtpd.server.carrier import Carrier, carry
from gsmtpd.server.overload import Overloads
from gsmtpd.server.reasons import reason_of
from gsmtpd.server.shown import Showing
from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply

if TYPE_CHECKING:
    from gsmtpd.server.client import Client, Leave
    from gsmtpd.server.connection import Connection
    from gsmtpd.server.tcp import SMTPServer
    from gsmtpd.storage.job import Job
    from gsmtpd.storage.writer import GroupCommitWriter

_log = logging.getLogger(__name__)

SWEEP = 1.0  # seconds between two looks at all deadlines
MAX_EVENTS = 512  # of one epoll_wait
LOOK_UP = 64  # events after which the thread looks at the clock
HANDSHAKES_FOR = 0.05  # seconds of a round in which handshakes are begun or gone on with
HANDSHAKES_AT_LEAST = 4  # of them in each round, however long it took
NO_DESCRIPTORS_PAUSE = 0.5  # seconds without accept after EMFILE; a ready listener would spin


class SMTPThread(threading.Thread):
    """One thread of the pool.

    counters: its own row, indexed by `Counter`. maillog: its own, flushed once per round.
    carriers: what it stores mail by itself with; without any the store's threads do it.
    now: monotonic seconds, as of this round. overloads: what it has not enough of. overfull:
    whether its sessions buffer more than they may. slot: where it shows them; None: nowhere.
    """

    def __init__(
        self,
        name: str,
        counters: memoryview,
        maillog: MailLog,
        carriers: Sequence[Carrier] = (),
        slot: Slot | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.counters = counters
        self.maillog = maillog
        self.overloads = Overloads(counters)
        self.shown = Showing(slot)
        self.overfull = False
        self._handshakes = 0  # in this round
        self._held = 0  # octets buffered by its sessions
        self.now = self._round_began = time.monotonic()
        self._next_sweep = self.now + SWEEP
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._awake = False
        self._inbox: deque[Job | Callable[[], None]] = deque()
        self._arrived: list[Job] = []  # messages for `_writer`
        self._writer: GroupCommitWriter | None = None
        self._carriers = carriers
        self._lanes: dict[int, Carrier] = {}  # by the descriptors of their lanes
        self._connections: dict[int, Client] = {}
        self._servers: list[SMTPServer] = []
        self._listeners: dict[int, SMTPServer] = {}  # those of them that are accepted for
        self._paused: dict[int, float] = {}  # listener → when to accept again
        self._running = True
        self._epoll.register(self._wakeup, EPOLLIN)

    # Called from other threads.

    def put(self, job: Job) -> None:
        """Take a job that the store is done with. Call `wake` afterwards."""
        self._inbox.append(job)

    def call(self, function: Callable[[], None]) -> None:
        """Have `function` called in this thread, soon."""
        self._inbox.append(function)
        self.wake()

    def call_for(self, connection: Client, function: Callable[[], None]) -> None:
        """Have `function` called in this thread, soon; its fault ends that session alone."""

        def guarded() -> None:
            try:
                function()
            except Exception:
                self._fault(connection)

        self.call(guarded)

    def wake(self) -> None:
        """Have the inbox looked at."""
        if not self._awake:
            self._awake = True
            os.eventfd_write(self._wakeup, 1)

    def stop(self) -> None:
        """End the thread; its connections are closed."""
        self._running = False
        self._awake = False
        self.wake()

    def __len__(self) -> int:
        return len(self._connections)

    def connections(self) -> list[Client]:
        """The connections it runs now."""
        return list(self._connections.values())

    @property
    def listening(self) -> bool:
        """Whether it still accepts connections."""
        return bool(self._listeners)

    # Called in this thread.

    def serve(self, servers: Sequence[SMTPServer]) -> None:
        """Accept the connections of `servers`, beside the other threads and processes."""
        self._servers = list(servers)
        for server in servers:
            if server.listening:
                self._listeners[server.fileno()] = server
                self._watch_listener(server.fileno())
                server.accepted_by_one_more()

    def stop_listening(self) -> None:
        """Accept no more connections than those that wait now."""
        for fd, server in self._listeners.items():
            if fd not in self._paused:
                self._epoll.unregister(fd)
            server.accepted_by_one_less()
        self._listeners.clear()
        self._paused.clear()

    def leave(self, how: Leave) -> None:
        """Accept no more, and tell the clients."""
        self.stop_listening()
        for connection in list(self._connections.values()):
            connection.leave(how)

    def count_refusal(self, said: Reply) -> None:
        """A client hears `said`, which refuses something."""
        self.counters[reason_of(said)] += 1

    def may_shake_hands(self) -> bool:
        """Whether one handshake more fits into this round: they take the longest by far."""
        self._handshakes += 1
        few = self._handshakes <= HANDSHAKES_AT_LEAST
        return few or time.monotonic() - self._round_began < HANDSHAKES_FOR

    def hold(self, octets: int, limit: int) -> None:
        """Its sessions buffer `octets` more, or less, where they may buffer `limit` in all."""
        self._held += octets
        if self._held > limit and octets > 0:
            message = "max_memory reached: %d octets are buffered; answering 452"
            lasts = partial(self._is_filled, limit)
            self.overloads.enter(Overload.MEMORY, lasts, message, self._held)
            self._make_room(limit)
        self.overfull = self._held > limit

    def _is_filled(self, limit: int) -> bool:
        # Not at once below it: that would be said again and again.
        return self._held > limit * 0.9

    def _make_room(self, limit: int) -> None:
        """Drop the largest messages that come in, so that no client keeps others out with its own.

        What the store has to write stays.
        """
        while self._held > limit:
            largest = max(self._connections.values(), key=attrgetter("incoming"), default=None)
            if largest is None or not largest.incoming:
                return
            largest.drop_incoming()

    def store(self, writer: GroupCommitWriter, job: Job) -> None:
        """Have `job` stored, behind what the other clients of this round have said.

        One message read behind the other is a tenth less CPU: what reads it stays in the caches.
        """
        self._writer = writer
        self._arrived.append(job)

    def _hand_over(self) -> None:
        if self._arrived and self._writer is not None:
            arrived, self._arrived = self._arrived, []
            try:
                self._writer.submit(*arrived)
            except Exception:
                for job in arrived:
                    self._fault(job.context)  # type: ignore[arg-type]
        if self._carriers:
            carry(self._carriers)

    def finished(self, job: Job) -> None:
        """The store is done with `job`."""
        connection: Connection = job.context  # type: ignore[assignment]
        try:
            connection.finished(job)
        except Exception:
            self._fault(connection)

    def watch_lane(self, carrier: Carrier, fd: int, before: int, interest: int) -> None:
        """Have `carrier` told of `interest` in its lane's `fd`; before: what it was told of."""
        if not before:
            self._epoll.register(fd, interest)
            self._lanes[fd] = carrier
        elif interest:
            self._epoll.modify(fd, interest)
        else:
            self._epoll.unregister(fd)
            del self._lanes[fd]

    def adopt(self, connection: Client) -> None:
        """Run `connection` from now on."""
        self._connections[connection.socket.fileno()] = connection
        self.counters[Counter.SESSIONS] += 1
        self.counters[Counter.CLIENTS] = len(self._connections)
        self.watch(connection, EPOLLIN)

    def forget(self, connection: Client) -> bool:
        """Stop running `connection`, whose socket the caller closes; False if it was forgotten."""
        fd = connection.socket.fileno()
        if self._connections.get(fd) is not connection:
            return False
        # No unregister: closing the only descriptor of a socket takes it out of the epoll.
        del self._connections[fd]
        self.counters[Counter.CLIENTS] = len(self._connections)
        return True

    def watch(self, connection: Client, interest: int) -> None:
        """Have `connection` told of `interest` (EPOLLIN or EPOLLOUT; 0: of nothing)."""
        if connection.interest == interest:
            return
        fd = connection.socket.fileno()
        if not interest:
            # Not modify(fd, 0): a hang-up would still be reported, again and again.
            self._epoll.unregister(fd)
        elif connection.interest:
            self._epoll.modify(fd, interest)
        else:
            self._epoll.register(fd, interest)
        connection.interest = interest

    def run(self) -> None:
        """Serve until `stop`."""
        poll = self._epoll.poll
        connections = self._connections
        lanes = self._lanes
        for carrier in self._carriers:
            carrier.start(self)
        while self._running:
            until = min([self._next_sweep, *(carrier.due for carrier in self._carriers)])
            events = poll(max(0.0, until - self.now), MAX_EVENTS)
            self.now = self._round_began = time.monotonic()
            self._handshakes = 0
            for number, (fd, event) in enumerate(events, 1):
                connection = connections.get(fd)
                if connection is not None:
                    try:
                        if event & EPOLLOUT:
                            connection.writable()
                        else:
                            connection.readable()
                    except Exception:
                        self._fault(connection)
                elif fd == self._wakeup:
                    self._read_inbox()
                elif fd in lanes:
                    lanes[fd].ready()
                elif fd in self._listeners:
                    self._accept(fd)
                if not number % LOOK_UP:
                    self.now = time.monotonic()
                    self._hand_over()
                    self._sweep_if_due()
            self._hand_over()
            self._sweep_if_due()
            self.maillog.flush()
        self._close_all()

    def _sweep_if_due(self) -> None:
        if self.now >= self._next_sweep:
            self._sweep()

    def _accept(self, fd: int) -> None:
        if fd in self._paused:
            return  # since this very round: a sweep may come in its middle
        server = self._listeners[fd]
        try:
            server.accept_waiting()
        except OSError as error:
            message = "cannot accept clients now: %s; LimitNOFILE= or ulimit -n raises how many"
            self.overloads.enter(Overload.DESCRIPTORS, self._is_paused, message, error.strerror)
            self._epoll.unregister(fd)
            self._paused[fd] = self.now + NO_DESCRIPTORS_PAUSE

    def _is_paused(self) -> bool:
        return bool(self._paused)

    def _watch_listener(self, fd: int) -> None:
        self._epoll.register(fd, EPOLLIN | select.EPOLLEXCLUSIVE)

    def _read_inbox(self) -> None:
        # First the descriptor, then the flag, then the inbox: nothing put meanwhile is missed.
        os.eventfd_read(self._wakeup)
        self._awake = False
        inbox = self._inbox
        for _ in range(len(inbox)):  # what is put meanwhile wakes it again, behind its clients
            item = inbox.popleft()
            if callable(item):
                try:
                    item()
                except Exception:
                    _log.exception("fault in an SMTP thread")
                continue
            self.finished(item)

    def _sweep(self) -> None:
        self._next_sweep = self.now + SWEEP
        self.counters[Counter.BEATS] += 1
        self.counters[Counter.MEMORY] = self._held
        for connection in list(self._connections.values()):
            try:
                connection.check_time(self.now)
            except Exception:
                self._fault(connection)
        for fd, until in list(self._paused.items()):
            if self.now >= until:
                del self._paused[fd]
                self._watch_listener(fd)
        for server in self._servers:
            server.service_actions()
        for fd in self._listeners:
            self._accept(fd)  # another process may have died with the wake-up for a client
        for carrier in self._carriers:
            carrier.look()
        self.overloads.look()
        self.shown.look(self._connections.values(), self.now)

    def _fault(self, connection: Client) -> None:
        """A fault of ours: the client hears 451 and may come again."""
        _log.exception("fault in the session of %s", connection.client_ip)
        try:
            connection.end(reply.INTERNAL_ERROR)
        except Exception:
            connection.close()

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.close()
        for carrier in self._carriers:
            carrier.close()
        self.maillog.flush()

    def close(self) -> None:
        """Close its own descriptors. Call it when the thread has ended: `wake` needs them."""
        self._epoll.close()
        os.close(self._wakeup)


class SMTPThreadPool:
    """A fixed number of SMTP threads."""

    def __init__(self, threads: Sequence[SMTPThread]) -> None:
        self._threads = list(threads)

    def start(self, servers: Sequence[SMTPServer]) -> None:
        """Start the threads; each accepts for all `servers` that listen."""
        for thread in self._threads:
            thread.serve(servers)
        for thread in self._threads:
            thread.start()

    def current(self) -> SMTPThread:
        """The pool's thread that is running now. Raises RuntimeError in any other thread."""
        thread = threading.current_thread()
        if isinstance(thread, SMTPThread):
            return thread
        raise RuntimeError("connections are handled in SMTP threads only")

    def serve(self, server: SMTPServer, request: Any, client_address: tuple[str, int]) -> None:
        """Serve a client of `server` that was accepted elsewhere."""
        taken = threading.Event()

        def take() -> None:
            server.take(request, client_address)
            taken.set()

        self._threads[0].call(take)
        taken.wait()

    def stop_listening(self) -> None:
        """Accept no more."""
        for thread in self._threads:
            thread.call(thread.stop_listening)

    def leave(self, how: Leave) -> None:
        """Accept no more, and tell the clients."""
        for thread in self._threads:
            thread.call(partial(thread.leave, how))

    def connections(self) -> list[Client]:
        """The connections that are open."""
        return [connection for thread in self._threads for connection in thread.connections()]

    def listening(self) -> bool:
        """Whether a thread still accepts connections."""
        return any(thread.listening for thread in self._threads)

    def clients(self) -> int:
        """How many connections are open."""
        return sum(map(len, self._threads))

    def stop(self, timeout: float) -> None:
        """Close what is still open and end the threads."""
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(timeout)
            if not thread.is_alive():
                thread.close()
