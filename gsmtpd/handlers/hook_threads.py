"""Who calls a hook, and what is heard where it does not answer? A few threads, none of them SMTP's.

A thread in Python cannot be ended: a call that hangs for ever keeps its thread. So there are few of
them, and whoever waits is told in time by a thread that only looks at the clock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from gsmtpd.complaints import Complaints
from gsmtpd.handlers.hooks import Incoming, Recipient, fault_of
from gsmtpd.message.row import Message
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.reply import Reply

_log = logging.getLogger(__name__)

THREADS = 4  # for each hook, in each process
QUIET = 60.0  # seconds without trouble until that is said to be over
_MOST_SAID = 10  # troubles that are told of until then

Verdict = Reply | None
Then = Callable[[Verdict], None]
"""Takes the verdict: None where the mail goes on. May be called in any thread, once."""


class _Asked:
    """Something that a hook has to look at. then: None once it is answered."""

    __slots__ = ("then", "until", "view")

    def __init__(self, view: Callable[[], object], then: Then, until: float) -> None:
        self.view: Callable[[], object] | None = view
        self.then: Then | None = then
        self.until = until  # monotonic seconds


class Hook:
    """Calls `function` in threads of its own. Its methods are for any thread.

    name: for the log. time_limit: seconds that an answer is waited for. on_trouble: the verdict
    where there is none, or no good one.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[object], object],
        time_limit: float,
        on_trouble: Verdict,
        threads: int = THREADS,
    ) -> None:
        self._name = name
        self._function = function
        self._time_limit = time_limit
        self._on_trouble = on_trouble
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._timed: SimpleQueue[_Asked | None] = SimpleQueue()
        self._stopped = False
        self._running: dict[str, float] = {}  # threads that are in the function, and since when
        self._troubles = _Troubles(name, on_trouble)
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        self._clock = threading.Thread(target=self._watch, name=f"{name}-clock", daemon=True)

    def __str__(self) -> str:
        return f"{self._name}: {len(self._running)} of {len(self._threads)} threads are in it"

    def start(self) -> None:
        """Start its threads; behind the fork."""
        for thread in (*self._threads, self._clock):
            thread.start()

    def stop(self) -> None:
        """Have the threads end that can, and tell nobody anything any more.

        None is waited for: a hook may hang.
        """
        self._stopped = True
        for _ in self._threads:
            self._queue.put(None)
        self._timed.put(None)

    def ask(self, view: Callable[[], object], then: Then) -> None:
        """Have the function called with what `view` makes, and `then` with the verdict.

        `then` is called soon and for sure; this never blocks.
        """
        now = time.monotonic()
        if self._is_stuck(now):
            many = f"all its {len(self._threads)} threads hang"
            self._troubles.say("stuck", f"{many}, and gsmtpctl reload starts others")
            then(self._on_trouble)
            return
        asked = _Asked(view, then, now + self._time_limit)
        self._queue.put(asked)
        self._timed.put(asked)

    def _is_stuck(self, now: float) -> bool:
        """Whether all threads hang: then it is of no use to wait for them."""
        since = [*self._running.values()]
        return len(since) == len(self._threads) and now > max(since) + self._time_limit

    def _run(self) -> None:
        name = threading.current_thread().name
        while (asked := self._queue.get()) is not None:
            view = asked.view
            if view is None:
                continue  # it was in the queue for too long
            self._running[name] = time.monotonic()
            verdict = self._verdict(view)
            del view, self._running[name]
            self._answer(asked, verdict)

    def _verdict(self, view: Callable[[], object]) -> Verdict:
        """What the function says, if that is good."""
        try:
            said = self._function(view())
        except BaseException as error:  # SystemExit, too, is no more than a failure of the hook's
            place, text = _described(error)
            self._troubles.say(place, text, error)
            return self._on_trouble
        if fault := fault_of(said):
            self._troubles.say(fault, fault)
            return self._on_trouble
        self._troubles.none()
        return said  # type: ignore[return-value]

    def _watch(self) -> None:
        # All have the same time, so the first that was asked is the first that is late.
        while (asked := self._timed.get()) is not None:
            while asked.then is not None and (left := asked.until - time.monotonic()) > 0:
                time.sleep(left)
            if asked.then is not None:
                self._troubles.say("late", f"no answer within time_limit = {self._time_limit:g} s")
                self._answer(asked, self._on_trouble)

    def _answer(self, asked: _Asked, verdict: Verdict) -> None:
        """Give the verdict, unless that was done before."""
        with self._lock:
            then, asked.then, asked.view = asked.then, None, None
        if then is None or self._stopped:
            return
        try:
            then(verdict)
        except Exception:
            _log.exception("%s: a client could not be told of a verdict", self._name)


class RecipientHook(Hook):
    """One for RCPT."""

    def ask_of(
        self,
        client: tuple[str, str, str],
        sender: Mailbox | None,
        recipient: Mailbox,
        taken: Sequence[Mailbox],
        then: Then,
    ) -> None:
        """Ask of `recipient`. client: its address, its HELO, and its TLS as in Envelope.

        taken: the recipients before it, which is copied.
        """
        self.ask(partial(_recipient, client, sender, recipient, tuple(taken)), then)


class MessageHook(Hook):
    """One for the end of a message."""

    def ask_of(self, message: Message, then: Then) -> None:
        """Ask of `message`."""
        self.ask(partial(_incoming, message), then)


def _recipient(
    client: tuple[str, str, str],
    sender: Mailbox | None,
    recipient: Mailbox,
    taken: tuple[Mailbox, ...],
) -> Recipient:
    ip, helo, tls = client
    return Recipient(ip, helo, str(sender or ""), str(recipient), bool(tls), tuple(map(str, taken)))


def _incoming(message: Message) -> Incoming:
    envelope = message.envelope
    return Incoming(
        message.id,
        message.client_ip,
        envelope.helo,
        str(envelope.sender or ""),
        message.is_tls,
        tuple(map(str, envelope.recipients + envelope.discarded)),
        message.content,
    )


def _described(error: BaseException) -> tuple[str, str]:
    """The kind of an error, and it in one line. Its text is no kind: it may name the mail."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file, line = (last.tb_frame.f_code.co_filename, last.tb_lineno) if last else ("", 0)
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    where = f"{os.path.basename(file)}, line {line}"
    return f"{type(error).__name__} {file} {line}", f"it failed: {what} ({where})"


class _Troubles:
    """Tells of each kind of trouble once, and that all is over after some quiet."""

    def __init__(self, name: str, on_trouble: Verdict) -> None:
        what = "mail is accepted" if on_trouble is None else f"answered with {on_trouble.code}"
        self._ends = f"{what} where that happens"
        self._complaints = Complaints(name)
        self._lock = threading.Lock()
        self._kinds: set[str] = set()
        self._last = 0.0  # monotonic seconds

    def say(self, kind: str, text: str, error: BaseException | None = None) -> None:
        """Tell of a trouble, with the traceback of `error`."""
        with self._lock:
            self._last = time.monotonic()
            if kind not in self._kinds and len(self._kinds) < _MOST_SAID:
                self._kinds.add(kind)
                self._complaints.say(f"{text}; {self._ends}", error)

    def none(self) -> None:
        """The hook has answered."""
        if not self._kinds:
            return
        with self._lock:
            if time.monotonic() > self._last + QUIET:
                self._kinds.clear()
                self._complaints.over()
