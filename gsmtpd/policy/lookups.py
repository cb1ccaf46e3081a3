"""Where are questions asked that no list in memory answers, and how long does an answer hold?

Answers of both kinds are kept for a while, so that most recipients are decided without asking. Old
ones are kept beyond that: they serve where nobody answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from gsmtpd.complaints import Complaints
from gsmtpd.policy.questions import Answer, Kind, Question, Unanswered

_log = logging.getLogger(__name__)

MAX_KEPT = 100_000  # answers, of "yes" and of "no" each: 30 MB of either
AGAIN = 2.0  # seconds until those who gave no answer are asked again
PATIENCE = 5.0  # seconds after which a client is not kept waiting for answers any longer
_STOP_WITHIN = 1.0  # seconds
_SLOW = 0.5  # seconds: those behind a failure that took as long are spared it

Done = Callable[[Answer, float], None]
"""Takes an answer, and for how many seconds it holds. May be called in any thread, once."""


class Source(Protocol):
    """Knows the answers to one kind of question."""

    def start(self) -> None:
        """Start its threads; behind the fork."""

    def ask(self, about: str, done: Done) -> None:
        """Have `done` called, soon and for sure; never blocks, never raises."""

    def stop(self) -> None:
        """End its threads, once nobody waits for an answer."""


class _Kept(NamedTuple):
    answer: Answer
    until: float  # monotonic seconds


class Lookups:
    """Asks `sources`, and keeps what they answer. Its methods are for any thread."""

    def __init__(
        self, sources: Mapping[Kind, Source], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = dict(sources)
        self._clock = clock
        self._lock = threading.Lock()
        # Apart, so that spammers, who try names, drive out nobody's who is known.
        self._yes: dict[Question, _Kept] = {}
        self._no: dict[Question, _Kept] = {}
        self._waiting: dict[Question, list[Callable[[], None]]] = {}

    def __str__(self) -> str:
        return (
            f"answers kept: {len(self._yes)} yes, {len(self._no)} no;"
            f" questions under way: {len(self._waiting)}"
        )

    def start(self) -> None:
        """Start all threads; behind the fork."""
        for source in set(self._sources.values()):
            source.start()

    def stop(self) -> None:
        """End all threads."""
        for source in set(self._sources.values()):
            source.stop()

    def answer(self, question: Question, since: float | None = None) -> Answer:
        """What is known by now. Raises Unanswered.

        since: monotonic seconds; an answer serves that has held at any time from then on, so that
        who asks for several needs none of them twice.
        """
        kept = self._yes.get(question) or self._no.get(question)
        if kept is None or kept.until < (self._clock() if since is None else since):
            raise Unanswered(question)
        return kept.answer

    def known(self, question: Question) -> Answer:
        """What was last known, however old that is."""
        kept = self._yes.get(question) or self._no.get(question)
        return kept.answer if kept is not None else None

    def prepare(self, question: Question) -> None:
        """Ask ahead of time, unless the answer is known."""
        try:
            self.answer(question)
        except Unanswered:
            self.look_up(question)

    def look_up(self, question: Question, then: Callable[[], None] = lambda: None) -> None:
        """Ask, and call `then` in some thread once `answer` has something to say."""
        with self._lock:
            waiting = self._waiting.get(question)
            if waiting is not None:
                waiting.append(then)
                return
            self._waiting[question] = [then]
        self._sources[question.kind].ask(question.about, partial(self._done, question))

    def give_up(self, question: Question) -> None:
        """Have all who wait go on without an answer: an old one serves, if there is one."""
        self._done(question, None, AGAIN)

    def _done(self, question: Question, answer: Answer, seconds: float) -> None:
        with self._lock:
            old = self._yes.pop(question, None) or self._no.pop(question, None)
            if answer is None and old is not None:
                answer = old.answer
            held = self._yes if answer else self._no
            while len(held) >= MAX_KEPT:
                del held[next(iter(held))]
            held[question] = _Kept(answer, self._clock() + seconds)
            waiting = self._waiting.pop(question, ())
        for then in waiting:
            try:
                then()
            except Exception:
                _log.exception("lookups: a client could not be told of an answer")


class AskedByThreads:
    """A source that blocks: `ask` is called in one of `threads` threads.

    ask: whether what it is given is so; raises what it likes where that cannot be said. seconds:
    for which an answer holds. name: for the log.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[str], bool],
        seconds: float,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._clock = clock
        self._complaints = Complaints(name)
        self._asked: SimpleQueue[tuple[str, Done, float] | None] = SimpleQueue()
        self._failed_at = -AGAIN  # monotonic seconds
        self._asking: dict[str, float] = {}  # threads that ask by now, and since when they do
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def ask(self, about: str, done: Done) -> None:
        """Put it into the queue; where all threads are kept waiting, nobody can say."""
        now = self._clock()
        if self._hang(now):
            self._complain(f"no answer for {PATIENCE:g} s")
            done(None, AGAIN)
        else:
            self._asked.put((about, done, now))

    def stop(self) -> None:
        """End the threads behind what they have been asked, or give up on them."""
        for _ in self._threads:
            self._asked.put(None)
        deadline = self._clock() + _STOP_WITHIN
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - self._clock()))

    def _hang(self, now: float) -> bool:
        """Whether whom they ask has kept all threads for longer than a client is."""
        since = [*self._asking.values()]
        return len(since) == len(self._threads) and now > max(since) + PATIENCE

    def _run(self) -> None:
        name = threading.current_thread().name
        while (asked := self._asked.get()) is not None:
            about, done, since = asked
            self._asking[name] = self._clock()
            answer = self._answer(about, since)
            del self._asking[name]
            done(*answer)

    def _answer(self, about: str, since: float) -> tuple[Answer, float]:
        # Nobody waits any longer, or it would take as long again to find out the same.
        now = self._clock()
        if now > since + PATIENCE or now < self._failed_at + AGAIN:
            return None, AGAIN
        try:
            found = self._ask(about)
        except Exception as error:
            if self._clock() - now > _SLOW:
                self._failed_at = self._clock()
            self._complain(str(error))
            return None, AGAIN
        self._complaints.over()
        return "yes" if found else "", self._seconds

    def _complain(self, trouble: str) -> None:
        """Say it once: one trouble has different words at each of several tries."""
        if not self._complaints.open:
            wrong = f"{trouble}; what is known serves on, all else is answered with 451"
            self._complaints.say(wrong)
