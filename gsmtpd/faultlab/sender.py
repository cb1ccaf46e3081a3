"""Who drives the sessions of one sending process, and keeps its ledger ahead of them?

A round of the loop reads what has come, decides, puts the ledger on the disk once for all sessions,
and only then writes. `gsmtpd.faultlab.senders` starts it, with its settings as JSON, and ends it by
closing its standard input, whatever happens to the parent.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from hashlib import sha256
from heapq import heappop, heappush
from typing import Any

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.mails import Mail, Mails
from gsmtpd.faultlab.session import BreakOff, Phase, Session, pause_before_connecting
from gsmtpd.faultlab.shared import Command, Page

_PER_CONNECTION = 200  # mails; then a session says QUIT and comes again
_TICK = 0.1  # seconds between looks at what is to be done by time
_BURST = 0.25  # seconds whose mails may leave at once where a rate was not kept up with
_MAX_PAUSE = 0.5  # seconds before a refused mail is tried again


class Sender:
    """The process with these `settings`, see `Senders`; also the `Account` of its sessions."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._ledger = ledger.Writer(settings["ledger"])
        size = Page.size(settings["places"])
        self._page = Page(memoryview(mmap.mmap(settings["memory"], size)), settings["places"])
        self._place: int = settings["place"]
        self._share = 1 / settings["places"]  # of the rate
        self._mails = Mails(
            settings["run"],
            settings["seed"],
            settings["sender"],
            settings["recipients"],
            settings["max_size"],
        )
        self._dice = random.Random(f"faultlab {settings['seed']} {settings['sender']}")
        self._number = 0  # of the next mail
        self._left: int | None = settings["messages"]
        self._again: list[tuple[float, int, Mail]] = []  # when to try again, the soonest first
        self._due = time.monotonic()  # when the next new mail may leave, with a rate
        self._now = self._due
        self._counts = dict.fromkeys(
            ("acknowledged", "attempts", "refused", "lost", "abandoned"), 0
        )
        self._poll = select.epoll()
        self._sessions = [
            Session(
                (settings["address"][0], settings["address"][1]),
                settings["from"],
                self,
                settings["timeout"],
                _PER_CONNECTION,
            )
            for _ in range(settings["sessions"])
        ]
        self._by_descriptor: dict[int, Session] = {}
        self._blocked: set[int] = set()  # descriptors that are asked whether they can be written to
        self._ready: deque[Session] = deque()
        self._closed: list[tuple[float, int, Session]] = []  # when each shall connect again
        self._writing: list[Session] = []
        self._stop_at: float | None = None
        self._note_run(settings)

    def _note_run(self, settings: Mapping[str, Any]) -> None:
        told = ("run", "sender", "seed", "address", "recipients", "own", "from", "max_size")
        values = {name: settings[name] for name in told}
        self._ledger.other("run", format=ledger.FORMAT, began=time.time(), **values)
        self._ledger.sync()

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Send until all is sent, or until told to stop."""
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        for number, session in enumerate(self._sessions):
            heappush(self._closed, (self._now, number, session))
        next_tick = self._now
        while not self._is_done():
            wait = self._wait()
            events = self._poll.poll(wait)
            self._now = time.monotonic()
            self._read(events)
            if self._now >= next_tick:
                next_tick = self._now + _TICK
                self._look_at_deadlines()
            self._connect()
            self._begin()
            self._ledger.sync()
            self._write()
        self._end()

    def _wait(self) -> float:
        """Seconds that nothing is to be done by time."""
        until = self._now + _TICK
        if self._closed:
            until = min(until, self._closed[0][0])
        if self._again and self._ready:
            until = min(until, self._again[0][0])
        if self._ready and self._page.rate and self._left != 0:
            until = min(until, self._due)
        return max(0.0, until - self._now)

    def _read(self, events: list[tuple[int, int]]) -> None:
        for descriptor, what in events:
            session = self._by_descriptor.get(descriptor)
            if session is None:
                self._end_with_parent(descriptor)
            elif what == select.EPOLLOUT:
                self._writing.append(session)
            else:
                session.read(self._now)
                self._after(session, descriptor)

    def _end_with_parent(self, descriptor: int) -> None:
        if descriptor == sys.stdin.fileno():
            self._ledger.sync()
            os._exit(1)

    def _after(self, session: Session, descriptor: int) -> None:
        """See what `session` wants next."""
        if session.phase is Phase.CLOSED:
            del self._by_descriptor[descriptor]  # epoll has forgotten it by itself
            self._blocked.discard(descriptor)
            self._put("connections", len(self._by_descriptor))
            self._lie_down(session)
        elif session.phase is Phase.READY:
            self._ready.append(session)
        elif session.wants_to_write:
            self._writing.append(session)

    def _lie_down(self, session: Session) -> None:
        pause = pause_before_connecting(session.failures)
        heappush(self._closed, (self._now + pause, id(session), session))

    def _connect(self) -> None:
        while self._closed and self._closed[0][0] <= self._now:
            session = heappop(self._closed)[2]
            session.connect(self._now)
            if session.phase is Phase.CLOSED:
                self._lie_down(session)
                continue
            self._by_descriptor[session.descriptor] = session
            self._put("connections", len(self._by_descriptor))
            self._poll.register(session.descriptor, select.EPOLLIN | select.EPOLLOUT)
            self._blocked.add(session.descriptor)

    def _write(self) -> None:
        writing, self._writing = self._writing, []
        for session in writing:
            descriptor = session.descriptor
            if descriptor < 0:
                continue  # gone since
            session.write(self._now)
            if session.phase is Phase.CLOSED:
                self._after(session, descriptor)
                continue
            # All that is here fits into a socket's buffer but for large mails and a full one.
            wants = session.wants_to_write
            if wants != (descriptor in self._blocked):
                self._poll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if wants else 0))
                self._blocked ^= {descriptor}

    def _look_at_deadlines(self) -> None:
        command = self._page.command
        if command is Command.STOP and self._stop_at is None:
            self._stop_at = self._now + self._page.finish
        for descriptor, session in [*self._by_descriptor.items()]:
            if session.phase is Phase.READY:
                continue
            if self._now > session.deadline:
                session.timed_out()
                self._after(session, descriptor)

    # --- mail ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give mail to those that are ready for it."""
        if self._page.command is Command.PAUSE:
            return
        while self._ready:
            mail = self._next()
            if mail is None:
                return
            session = self._ready.popleft()
            if session.phase is not Phase.READY:  # it was closed since
                heappush(self._again, (self._now, mail.number, mail))
                continue
            share = self._page.break_off
            where = BreakOff.NOWHERE
            if share and self._dice.random() < share:
                where = self._dice.choice((BreakOff.IN_DATA, BreakOff.BEHIND_DOT))
            session.begin(mail, where, self._now)
            self._writing.append(session)

    def _next(self) -> Mail | None:
        """A mail that shall leave now: one that must be tried again, or a new one."""
        if self._again and self._again[0][0] <= self._now:
            return heappop(self._again)[2]
        if self._left == 0 or self._stop_at is not None or self._page.command is Command.STOP:
            return None
        rate = self._page.rate
        if rate:
            if self._due > self._now:
                return None
            self._due = max(self._due, self._now - _BURST) + 1 / (rate * self._share)
        return self._new()

    def _new(self) -> Mail:
        mail = self._mails.mail(self._number)
        self._number += 1
        if self._left is not None:
            self._left -= 1
        content = mail.content
        digest = sha256(content).hexdigest()
        self._ledger.mail(mail.uid, time.time(), mail.to, len(content), digest)
        return mail

    def _try_again(self, mail: Mail) -> None:
        pause = min(_MAX_PAUSE, 0.02 * 2.0 ** min(mail.attempt, 8))
        heappush(self._again, (self._now + pause, mail.number, mail))

    # --- the account of the sessions ----------------------------------------------------------

    def about_to_end(self, mail: Mail) -> None:
        self._ledger.dot(mail.uid, mail.attempt, time.time())

    def left(self) -> None:
        self._count("attempts")

    def answered(self, mail: Mail, phase: str, code: int, text: str, seconds: float) -> None:
        self._ledger.reply(mail.uid, mail.attempt, phase, code, text, seconds, time.time())
        if phase == "dot" and 200 <= code < 300:
            # Whoever sees it counted may rely on it.
            self._page.put(self._place, "last", self._now)
            self._count("acknowledged")
            return
        self._put("trouble", self._now)
        self._count("refused")
        if code < 500:
            self._try_again(mail)

    def lost(self, mail: Mail, phase: str, why: str) -> None:
        self._ledger.lost(mail.uid, mail.attempt, phase, why, time.time())
        self._put("trouble", self._now)
        self._count("lost")
        self._try_again(mail)

    def abandoned(self, mail: Mail, phase: str) -> None:
        self._ledger.abandoned(mail.uid, mail.attempt, phase, time.time())
        self._count("abandoned")
        self._try_again(mail)

    def turned_away(self, code: int, text: str) -> None:
        self._ledger.other("turned_away", code=code, text=text, at=round(time.time(), 3))

    def _count(self, what: str) -> None:
        self._counts[what] += 1
        self._put(what, self._counts[what])

    def _put(self, what: str, value: float) -> None:
        self._page.put(self._place, what, value)

    # --- the end ------------------------------------------------------------------------------

    def _is_done(self) -> bool:
        if self._stop_at is not None and self._now > self._stop_at:
            return True
        if self._left != 0 and self._stop_at is None:
            return False
        return not self._again and all(session.mail is None for session in self._sessions)

    def _end(self) -> None:
        for session in self._sessions:
            if session.phase is Phase.READY:
                session.quit()
            else:
                session.give_up()
        used = os.times()
        self._ledger.other("end", at=time.time(), cpu=used.user + used.system, **self._counts)
        self._ledger.close()


def main() -> int:
    """Send as the first argument says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: that is for the parent
    Sender(json.loads(sys.argv[1])).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
