"""What does one thread of the dispatcher do? It has its runner act on one mail after another."""

from __future__ import annotations

import calendar
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gsmtpd.complaints import Complaints
from gsmtpd.handlers.mail import Facts
from gsmtpd.handlers.process import RefusedError, Runner, RunnerError, Task
from gsmtpd.metrics import Counter
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.outbox import Entry, Finished, Outbox, Session
from gsmtpd.storage.reader import StoredMail, UnreadableError

_log = logging.getLogger(__name__)

GROWTH = 3.0  # each pause is so many times the one before
LONGEST_PAUSE = 6 * 3600.0
SPREAD = 0.2  # of a pause, by chance: what failed together does not come again together
AT_ONCE = 10  # entries that one thread takes
_LEASE_MORE = 120.0  # seconds beyond their time limits that entries are nobody else's
_TELL_WITHIN = 60.0  # seconds in which the outbox can be told what has become of one
_FIRST_REST = 0.5  # seconds behind a runner that has ended; doubled for each that does so at once
_REST_EACH = 5.0  # or so many times as long as that took
_LONGEST_REST = 5.0
_AFTER_TROUBLE = 2.0  # seconds
_FIRST_REFUSED_FOR = 1.0  # seconds until a handler that cannot be had is tried again, at first
_REFUSED_FOR = 60.0  # and at last
_IDLE_FOR = 60.0  # seconds until a runner without work is ended, and its connection
_REPLIES_EACH = 86400.0  # seconds between two replies to one address (RFC 3834 section 2)


class Plan(NamedTuple):
    """A handler, how many runners it has, how often it is called for a mail, and when again.

    pause: seconds before the second time.
    """

    task: Task
    processes: int
    tries: int
    pause: float


def pause_before(attempt: int, first: float) -> float:
    """Seconds before try number `attempt`, from 2; `first`: about those before the second."""
    pause = min(first * GROWTH ** min(attempt - 2, 30), max(first, LONGEST_PAUSE))
    return pause * random.uniform(1 - SPREAD, 1 + SPREAD)


class Hand:
    """One thread and its runner. owner, session: see Outbox. count: counts one more of that.

    stopped: set where no more is to be begun. first: starts its runner at once, to see whether the
    handler can be had at all.
    """

    def __init__(
        self,
        plan: Plan,
        session: Session,
        owner: str,
        stopped: threading.Event,
        count: Callable[[Counter], None],
        first: bool,
    ) -> None:
        self.name = plan.task.name
        self._plan = plan
        self._session = session
        self._owner = owner
        self._outbox = Outbox(session, owner)
        self._in_doubt = False
        self._stopped = stopped
        self._count = count
        self._first = first
        self._runner = Runner(plan.task)
        self._used_at = time.monotonic()
        self._at: Entry | None = None
        self._refusals = 0  # one behind the other
        self._ended = 0  # runners, one behind the other
        self._complaints = Complaints(f"handler {self.name}")
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"handler-{self.name}", daemon=True)
        self.start = self._thread.start
        self.join = self._thread.join
        self.is_alive = self._thread.is_alive
        self.wake = self._woken.set
        self.cut_short = self._runner.kill

    def __str__(self) -> str:
        entry = self._at
        return f"handler {self.name}: {'idle' if entry is None else f'at mail {entry.hash}'}"

    def _run(self) -> None:
        try:
            if self._first:
                self._try_out()
            while not self._stopped.is_set():
                self._woken.wait(self._round())
                self._woken.clear()
        finally:
            self._runner.end()
            self._session.close()

    def _try_out(self) -> None:
        try:
            self._runner.start()
        except (RefusedError, RunnerError) as error:
            self._complaints.say(f"{error}; its mail waits")
        except Exception:
            _log.exception("handler %s: unexpected trouble", self.name)

    def _round(self) -> float | None:
        """Act on what is due; how many seconds until the next look, None if there is no need."""
        try:
            if self._in_doubt:
                # What was in hand when the database went away.
                self._outbox.give_back(self._owner, time.time())
                self._in_doubt = False
            lease = (self._plan.task.time_limit + _LONGEST_REST) * AT_ONCE + _LEASE_MORE
            entries = self._outbox.take(self.name, AT_ONCE, time.time(), lease)
            if not entries:
                return self._rest()
            self._act_on(entries)
            return 0.0
        except StoreError as error:
            self._complaints.say(str(error))
        except Exception:
            _log.exception("handler %s: unexpected trouble", self.name)
        self._in_doubt = True
        self._stopped.wait(_AFTER_TROUBLE)
        return 0.0

    def _rest(self) -> float | None:
        """Nothing is due. End what is not used any more."""
        left = self._used_at + _IDLE_FOR - time.monotonic()
        if left > 0:
            return left
        self._runner.end()
        self._session.close()
        return None

    def _act_on(self, entries: list[Entry]) -> None:
        try:
            self._runner.start()
        except (RefusedError, RunnerError) as error:
            self._put_back(entries, str(error))
            return
        self._refusals = 0
        self._complaints.over()
        for entry in entries:
            if self._stopped.is_set():
                self._put_back([entry])
                continue
            self._at = entry
            try:
                self._act(entry)
            finally:
                self._at = None
                self._used_at = time.monotonic()

    def _put_back(self, entries: list[Entry], refused: str = "") -> None:
        """Have `entries`, which were not acted on, come again. refused: why, if not for a stop."""
        due = time.time()
        if refused and not self._stopped.is_set():
            self._complaints.say(f"{refused}; its mail waits")
            # Somebody may have killed it as it started; else it takes a while until it is mended.
            due += min(pause_before(self._refusals + 2, _FIRST_REFUSED_FOR), _REFUSED_FOR)
            self._refusals += 1
        for entry in entries:
            self._write_down(self._outbox.postpone, entry, due, refused or entry.reason)

    def _write_down(self, write: Callable[..., None], *arguments: object) -> None:
        """Have the outbox know, as soon as it can be told. Raises StoreError."""
        until = time.monotonic() + _TELL_WITHIN
        while True:
            try:
                write(*arguments)
                return
            except StoreError as error:
                if self._stopped.is_set() or time.monotonic() > until:
                    raise
                self._complaints.say(str(error))
                self._stopped.wait(_AFTER_TROUBLE)

    def _act(self, entry: Entry) -> None:
        try:
            found = self._outbox.mail(entry)
        except UnreadableError as error:
            self._failed(entry, str(error))  # of a body store that is down it may come back
            return
        if found is None:
            _log.info("handler %s: mail %s was deleted before its turn", self.name, entry.hash)
            self._write_down(self._outbox.finish, entry, Finished(), time.time())
            return
        began = time.monotonic()
        try:
            self._runner.start()  # which the mail before may have ended
            facts = _facts(entry, found[0])
            frame = self._runner.run(facts._asdict(), found[1], lambda ask: self._asked(entry, ask))
        except (RefusedError, RunnerError) as error:
            if self._stopped.is_set():
                self._put_back([entry])  # it was cut short
            else:
                self._failed(entry, str(error))
                self._recover(time.monotonic() - began)
            return
        self._became(entry, frame)
        if "spent" in frame:
            self._recover(time.monotonic() - began)
        else:
            self._ended = 0

    def _recover(self, spent: float) -> None:
        """Wait a bit: to start a process costs more than most mail that comes in meanwhile.

        spent: seconds that the last one took until it ended; it may have been busy all the time.
        """
        rest = max(_FIRST_REST * 2.0 ** min(self._ended, 32), _REST_EACH * spent)
        self._stopped.wait(min(rest, _LONGEST_REST))
        self._ended += 1

    def _asked(self, entry: Entry, frame: dict[str, Any]) -> dict[str, Any]:
        """Answer what a runner asks while it acts on `entry`."""
        address = str(frame.get("address", ""))
        may = self._outbox.may_reply(entry, address, time.time(), _REPLIES_EACH)
        return {"may": may}

    def _became(self, entry: Entry, frame: dict[str, Any]) -> None:
        """Write down what has become of `entry`, as the runner says in `frame`."""
        if reply := frame.get("reply"):
            _log.info("handler %s: mail %s: %s", self.name, entry.hash, reply)
        if "failed" in frame:
            if frame.get("again", True):
                self._failed(entry, str(frame["failed"]), frame.get("after"))
            else:
                self._bury(entry, str(frame["failed"]))
        elif "later" in frame:
            due = time.time() + max(0.0, float(frame["later"]))
            self._write_down(self._outbox.call_again, entry, due, entry.tries, "")
        else:
            notes = [(str(name), str(value)) for name, value in frame.get("notes", ())]
            finished = Finished(notes, bool(frame.get("discard")))
            level = logging.INFO if finished.discard else logging.DEBUG
            what = "discarded" if finished.discard else "done"
            _log.log(level, "handler %s: mail %s: %s", self.name, entry.hash, what)
            self._write_down(self._outbox.finish, entry, finished, time.time())
            self._count(Counter.HANDLED)

    def _failed(self, entry: Entry, reason: str, after: float | None = None) -> None:
        tries = entry.tries + 1
        if tries >= self._plan.tries:
            self._bury(entry, reason)
            return
        self._count(Counter.HANDLER_FAILED)
        pause = pause_before(tries + 1, self._plan.pause) if after is None else max(0.0, after)
        _log.warning(
            "handler %s: mail %s: try %d failed, the next is in %.0f s: %s",
            self.name, entry.hash, tries, pause, reason,
        )  # fmt: skip
        due = time.time() + pause
        self._write_down(self._outbox.call_again, entry, due, tries, reason)

    def _bury(self, entry: Entry, reason: str) -> None:
        self._count(Counter.HANDLER_DEAD)
        _log.error(
            "handler %s: mail %s is given up after %d %s: %s; see gsmtpctl outbox list",
            self.name, entry.hash, entry.tries + 1, "tries" if entry.tries else "try", reason,
        )  # fmt: skip
        self._write_down(self._outbox.bury, entry, reason)


def _facts(entry: Entry, mail: StoredMail) -> Facts:
    return Facts(
        id=mail.hash,
        row=mail.mail_id,
        delivery=entry.delivery,
        attempt=entry.calls + 1,
        sender=mail.return_path,
        recipient=entry.recipient,
        mailbox=entry.to,
        client_ip=mail.ip_addr,
        helo=mail.helo,
        is_tls=bool(mail.is_tls),
        received_at=_seconds(mail.date),
    )


def _seconds(date: str) -> float:
    """Unix time of a column `date`."""
    try:
        return float(calendar.timegm(time.strptime(date[:19], "%Y-%m-%d %H:%M:%S")))
    except ValueError:
        return 0.0
