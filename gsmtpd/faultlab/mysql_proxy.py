"""How does a network, or a dying server, lose what a database and its client say to each other?

Connections are passed on packet by packet. At a point of a transaction for which a fault is armed,
the fault happens, once or as often as was said::

    with MySQLProxy(database.address) as proxy:
        proxy.arm(Point.BEFORE_COMMIT, Action.KILL)
        ...  # a client that commits by way of 127.0.0.1 and proxy.port
        assert proxy.happened
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Self

from gsmtpd.faultlab.mysql_passage import Address, Passage, Point, Stop
from gsmtpd.faultlab.processes import ServerError

__all__ = ["Action", "Address", "Happened", "MySQLProxy", "Point"]

_PATIENCE = 30.0  # seconds that another thread waits for the proxy's to do what it is told


class Action(Enum):
    """What happens there, to the packet that is there, and to its connection."""

    KILL = "client and server see the connection reset"
    DROP = "the packet vanishes, and so does all that follows on its connection, until heal()"
    DELAY = "the packet, and all behind it on its connection, comes so many seconds late"
    BLACK_HOLE = "nothing passes any more, on any connection, until heal()"
    CALL = "a function is called; then the action that it returns, or the packet is passed on"
    ERROR = "the server is told ROLLBACK, the client that the statement failed, by its number"
    CUT = "the packet is passed on, and in the same moment the client's connection is reset"
    HOLD = "the client's connection is reset; the packet is passed on so many seconds later"


class Happened(NamedTuple):
    """A fault that came about. at: Unix time."""

    point: Point
    action: Action
    at: float


Function = Callable[[], Action | None]


@dataclass
class _Plan:
    point: Point
    action: Action
    times: int
    seconds: float
    function: Function
    errno: int


_UNFIT = {
    (Point.COMMIT_REPLY, Action.ERROR): "what is committed cannot be rolled back",
    (Point.COMMIT_REPLY, Action.CUT): "nothing goes to the server there; KILL does it",
    (Point.COMMIT_REPLY, Action.HOLD): "nothing goes to the server there",
    (Point.CONNECT, Action.CUT): "nothing goes to the server there; KILL does it",
    (Point.CONNECT, Action.HOLD): "nothing goes to the server there",
}


class MySQLProxy:
    """Listens on 127.0.0.1 at `port` and passes connections on to `server`, in a thread of its own.

    As a context manager it runs within. A server that offers TLS or compression is made not to.
    server: where connections made from now on lead; it may be changed. happened: the faults that
    came about, the first one first.
    """

    def __init__(self, server: Address) -> None:
        self.server = server
        self.happened: list[Happened] = []
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._armed: list[_Plan] = []
        self._passages: set[Passage] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._orders: deque[Callable[[], None]] = deque()
        self._ours, self._theirs = socket.socketpair()
        self._dark = False
        self._closing = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="mysql-proxy", daemon=True)

    # --- what the owner may say, from any thread ---

    @property
    def address(self) -> Address:
        """Where clients connect to."""
        return "127.0.0.1", self.port

    @property
    def armed(self) -> int:
        """How many faults have not come about yet."""
        return sum(plan.times for plan in self._armed)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._passages)

    def arm(
        self,
        point: Point,
        action: Action,
        *,
        times: int = 1,
        seconds: float = 1.0,
        function: Function = lambda: None,
        errno: int = 2013,
    ) -> None:
        """Have a fault happen the next so many `times` that a connection comes to `point`.

        Of several that fit, the one that was armed first happens. seconds: of DELAY and HOLD.
        function: of CALL; it is called in the proxy's thread, so that nothing passes meanwhile.
        errno: of ERROR. Raises ValueError where the action is impossible at that point.
        """
        if (point, action) in _UNFIT:
            raise ValueError(f"{action.name} at {point.name}: {_UNFIT[point, action]}")
        plan = _Plan(point, action, times, seconds, function, errno)
        self._tell(lambda: self._armed.append(plan))

    def disarm(self) -> None:
        """Forget the faults that have not come about yet."""
        self._tell(self._armed.clear)

    def black_hole(self) -> None:
        """Let nothing pass any more, in either direction; connections stay open until heal().

        New ones are taken by the kernel, and nobody says anything on them.
        """
        self._tell(self._darken)

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED) until heal(). Those there are stay."""
        self._tell(self._stop_listening)

    def reset(self) -> None:
        """Reset all connections there are, towards both ends."""
        self._tell(self._kill_all)

    def heal(self) -> None:
        """End the faults that last: BLACK_HOLE, refuse(), DROP and HOLD; what is armed stays.

        What waited in a black hole passes now, as it would be sent again by TCP. Connections with a
        dropped packet are reset.
        """
        self._tell(self._heal)

    def __enter__(self) -> Self:
        assert self._listener is not None
        self._ours.setblocking(False)
        self._selector.register(self._ours, selectors.EVENT_READ, self._obey)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._thread.start()
        return self

    def __exit__(self, trouble: type[BaseException] | None, *_: object) -> None:
        self._tell(self._end)
        self._thread.join(_PATIENCE)
        if self._failure is not None and trouble is None:
            raise ServerError(f"a function of CALL failed: {self._failure}") from self._failure

    def _tell(self, order: Callable[[], None]) -> None:
        """Have the proxy's thread carry `order` out; it is done on return. Raises ServerError."""
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            order()
            return
        done = threading.Event()

        def carry_out() -> None:
            order()
            done.set()

        self._orders.append(carry_out)
        self._theirs.send(b"!")
        if not done.wait(_PATIENCE):
            raise ServerError(f"the proxy has not done what it was told for {_PATIENCE:g} s")

    # --- the thread ---

    def _run(self) -> None:
        while not self._closing:
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, events in self._selector.select(wait):
                # What another event of this round has closed is registered no more.
                if self._selector.get_map().get(key.fd) is key:
                    key.data(events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
        self._selector.close()
        self._ours.close()

    def _obey(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(4096)
        while self._orders:
            self._orders.popleft()()

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), what))

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        try:
            client, _address = self._listener.accept()
        except OSError:  # it went away again, or there are no descriptors
            return
        passage = Passage(client, self._selector, self)
        self._passages.add(passage)
        passage.connect(self.server)

    def _darken(self) -> None:
        if self._listener is not None and not self._dark:
            self._selector.unregister(self._listener)
        self._dark = True
        for passage in self._passages:
            passage.stop(Stop.BLACK_HOLE)

    def _heal(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(self.address)
            self._listener.setblocking(False)
            self._dark = True
        if self._dark:
            self._dark = False
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for passage in [*self._passages]:
            if Stop.DROP in passage.stops:
                passage.kill()
            passage.go_on(Stop.BLACK_HOLE)
            passage.go_on(Stop.HOLD)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            if not self._dark:
                self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _kill_all(self) -> None:
        for passage in [*self._passages]:
            passage.kill()

    def _end(self) -> None:
        self._kill_all()
        self._stop_listening()
        self._closing = True

    # --- what the passages tell ---

    def closed(self, passage: Passage) -> None:
        """It has ended."""
        self._passages.discard(passage)

    def reached(self, passage: Passage, points: set[Point]) -> bool:
        """It is at `points`; whether it is to pass on what has come there."""
        for number, plan in enumerate(self._armed):
            if plan.point in points:
                plan.times -= 1
                if not plan.times:
                    del self._armed[number]
                self.happened.append(Happened(plan.point, plan.action, time.time()))
                return self._act(plan, passage)
        return True

    def _act(self, plan: _Plan, passage: Passage) -> bool:
        action: Action | None = plan.action
        if action is Action.CALL:
            action = self._call(plan.function)
        match action:
            case None:
                return True
            case Action.KILL:
                passage.kill()
            case Action.DROP:
                passage.stop(Stop.DROP)
            case Action.BLACK_HOLE:
                self._darken()
            case Action.DELAY:
                passage.stop(Stop.DELAY)
                self._later(plan.seconds, lambda: passage.go_on(Stop.DELAY))
            case Action.ERROR:
                passage.refuse(plan.errno, f"made to fail at {plan.point.name}")
            case Action.CUT:
                passage.lose_client()
                return True
            case Action.HOLD:
                passage.lose_client()
                passage.stop(Stop.HOLD)
                self._later(plan.seconds, lambda: passage.go_on(Stop.HOLD))
        return False

    def _call(self, function: Function) -> Action | None:
        try:
            action = function()
        except Exception as error:  # it is told to the owner, when the proxy ends
            self._failure = error
            action = Action.KILL
        return Action.KILL if action is Action.CALL else action
