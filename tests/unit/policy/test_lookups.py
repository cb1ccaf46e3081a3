"""How long does an answer hold, who is asked again and when, and does every waiter hear of it?

Time is a number here, and threads wait for each other by events.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.policy import lookups as module
from gsmtpd.policy.lookups import AGAIN, PATIENCE, AskedByThreads, Done, Lookups
from gsmtpd.policy.questions import Answer, Kind, Question, Unanswered

ANN = Question(Kind.RECIPIENT, "ann@x.example")
BOB = Question(Kind.RECIPIENT, "bob@x.example")
TTL = 60.0
SOON = 20.0  # seconds; for what has to happen, and mostly has happened already
ENDS = "; what is known serves on, all else is answered with 451"


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Let so much time go by."""
        self.now += seconds


class Oracle:
    """A source that answers when a test has it do so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls: list[str] = []
        self._waiting: list[Done] = []

    def start(self) -> None:
        self.calls.append("start")

    def ask(self, about: str, done: Done) -> None:
        self.asked.append(about)
        self._waiting.append(done)

    def say(self, answer: Answer, seconds: float = TTL) -> None:
        """Answer what was asked first."""
        self._waiting.pop(0)(answer, seconds)

    def stop(self) -> None:
        self.calls.append("stop")


class Place:
    """Lookups of one source, and the clock of both."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.oracle = Oracle()
        self.lookups = Lookups({Kind.RECIPIENT: self.oracle}, self.clock)

    def known(self, question: Question = ANN) -> Answer | type[Unanswered]:
        """What is known by now."""
        try:
            return self.lookups.answer(question)
        except Unanswered as unanswered:
            assert unanswered.question == question
            return Unanswered

    def learn(self, answer: Answer, question: Question = ANN, seconds: float = TTL) -> None:
        """Ask, and be answered."""
        self.lookups.look_up(question)
        self.oracle.say(answer, seconds)


@pytest.fixture
def place() -> Place:
    return Place()


# How long an answer holds


@pytest.mark.parametrize("answer", ["yes", "", "zen.example.org: spam"])
def test_an_answer_holds_for_its_time(place: Place, answer: str) -> None:
    assert place.known() is Unanswered
    place.learn(answer)
    assert place.known() == answer
    place.clock.now += TTL
    assert place.known() == answer
    place.clock.now += 0.001
    assert place.known() is Unanswered
    other = "" if answer else "yes"
    place.learn(other)
    assert place.known() == other
    place.clock.now += TTL + 1
    assert place.known() is Unanswered
    assert place.oracle.asked == [ANN.about] * 2


@pytest.mark.parametrize("answer", ["yes", ""])
def test_an_old_answer_serves_while_nobody_can_say(place: Place, answer: str) -> None:
    place.learn(answer)
    for _ in range(3):
        place.clock.now += TTL + 1
        assert place.known() is Unanswered
        place.learn(None, seconds=AGAIN)
        assert place.known() == answer
        place.clock.now += AGAIN
        assert place.known() == answer
    place.clock.now += 0.001
    assert place.known() is Unanswered
    other = "" if answer else "yes"
    place.learn(other)
    assert place.known() == other


def test_without_an_old_answer_nobody_can_say(place: Place) -> None:
    for _ in range(2):
        place.learn(None, seconds=AGAIN)
        assert place.known() is None
        place.clock.now += AGAIN + 0.001
        assert place.known() is Unanswered
    place.learn("yes")
    assert place.known() == "yes"


def test_questions_have_nothing_to_do_with_each_other(place: Place) -> None:
    place.learn("yes")
    assert place.known(BOB) is Unanswered
    assert place.known(Question(Kind.DOMAIN, ANN.about)) is Unanswered
    place.learn("", BOB)
    assert (place.known(), place.known(BOB)) == ("yes", "")


@given(st.lists(st.tuples(st.sampled_from(["yes", "", None]), st.sampled_from([0, AGAIN, TTL]))))
def test_the_last_answer_that_was_one_counts(story: list[tuple[Answer, float]]) -> None:
    place, last = Place(), None
    for answer, pause in story:
        place.learn(answer)
        last = answer if answer is not None else last
        assert place.known() == last
        place.clock.now += pause
        assert place.known() == last


def test_who_has_several_questions_needs_no_answer_twice(place: Place) -> None:
    """Though each takes longer than the one before it holds."""
    questions = [ANN, BOB, Question(Kind.RECIPIENT, "eve@x.example")]
    place.learn("no more", ANN, 0.5)
    place.clock.now += 1.0
    began = place.clock.now
    asked: list[Question] = []
    while len(asked) < 10:
        try:
            found = [place.lookups.answer(each, since=began) for each in questions]
            break
        except Unanswered as unanswered:
            asked.append(unanswered.question)
            place.clock.now += 1.0
            place.learn(unanswered.question.about, unanswered.question, 0.5)
    assert asked == questions  # what had held before they began was asked again
    assert found == [each.about for each in questions]
    place.clock.now += 1.0
    assert [place.known(each) for each in questions] == [Unanswered] * 3


def test_what_was_last_known(place: Place) -> None:
    assert place.lookups.known(ANN) is None
    for answer in ("yes", ""):
        place.learn(answer)
        place.clock.now += 1000 * TTL
        assert place.known() is Unanswered
        assert place.lookups.known(ANN) == answer
    place.learn(None)
    assert place.lookups.known(ANN) == ""


# Who waits for it


def test_a_hundred_who_ask_are_one_question(place: Place) -> None:
    told: list[int] = []
    for i in range(100):
        place.lookups.look_up(ANN, lambda i=i: told.append(i))  # type: ignore[misc]
    assert place.oracle.asked == [ANN.about]
    assert told == []
    place.oracle.say("yes")
    assert told == [*range(100)]
    place.lookups.look_up(ANN, lambda: told.append(-1))
    assert place.oracle.asked == [ANN.about] * 2
    place.oracle.say("yes")
    assert told == [*range(100), -1]


def test_the_answer_is_there_when_who_waited_is_told(place: Place) -> None:
    heard: list[object] = []
    place.lookups.look_up(ANN, lambda: heard.append(place.known()))
    place.oracle.say("")
    place.lookups.look_up(BOB, lambda: heard.append(place.known(BOB)))
    place.oracle.say(None)
    assert heard == ["", None]


def test_asking_ahead_of_time(place: Place) -> None:
    place.lookups.prepare(ANN)
    place.lookups.prepare(ANN)
    assert place.oracle.asked == [ANN.about]
    place.oracle.say("")
    place.lookups.prepare(ANN)
    assert place.oracle.asked == [ANN.about]
    place.clock.now += TTL + 1
    place.lookups.prepare(ANN)
    assert place.oracle.asked == [ANN.about] * 2


def test_who_gives_up_goes_on_and_a_late_answer_counts(place: Place) -> None:
    told: list[str] = []
    place.lookups.look_up(ANN, lambda: told.append("first"))
    place.lookups.look_up(ANN, lambda: told.append("second"))
    place.lookups.give_up(ANN)
    assert told == ["first", "second"]
    assert place.known() is None
    place.oracle.say("yes")
    assert place.known() == "yes"
    assert told == ["first", "second"]
    place.clock.now += TTL
    assert place.known() == "yes"


@pytest.mark.parametrize("answer", ["yes", ""])
def test_who_gives_up_has_the_old_answer(place: Place, answer: str) -> None:
    place.learn(answer)
    place.clock.now += TTL + 1
    place.lookups.look_up(ANN)
    place.lookups.give_up(ANN)
    assert place.known() == answer
    place.clock.now += AGAIN + 0.001
    assert place.known() is Unanswered
    # Who asks now waits for the first question or the second, whichever is answered.
    told: list[str] = []
    place.lookups.look_up(ANN, lambda: told.append("told"))
    other = "" if answer else "yes"
    place.oracle.say(other)
    assert told == ["told"]
    assert place.known() == other
    place.oracle.say(other)
    assert told == ["told"]


def test_giving_up_after_the_answer_came_keeps_it(place: Place) -> None:
    place.learn("yes")
    place.lookups.give_up(ANN)
    assert place.known() == "yes"


# How much is kept


def test_many_unknown_names_drive_out_nobody_who_is_known(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    names = [Question(Kind.RECIPIENT, f"{i}@x.example") for i in range(10)]
    place.learn("yes", ANN)
    for name in names:
        place.learn("", name)
    assert place.known(ANN) == "yes"
    assert [place.known(name) for name in names] == [Unanswered] * 7 + [""] * 3
    for name in names:
        place.learn("yes", name)
    assert place.known(ANN) is Unanswered
    assert [place.known(name) for name in names] == [Unanswered] * 7 + ["yes"] * 3
    for name in names[:7]:
        place.learn(None, name)
    assert [place.known(name) for name in names] == [Unanswered] * 4 + [None] * 3 + ["yes"] * 3


def test_who_was_answered_longest_ago_goes_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    eve = Question(Kind.RECIPIENT, "eve@x.example")
    place.learn("yes", ANN)
    place.learn("yes", BOB)
    place.learn("yes", ANN)
    place.learn("yes", eve)
    assert [place.known(each) for each in (ANN, BOB, eve)] == ["yes", Unanswered, "yes"]


def test_who_changes_sides_is_on_one_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 1)
    for answer in ("yes", "", "yes"):
        place.learn(answer)
        assert place.known() == answer
    place.learn("yes", BOB)  # in the place of ANN, of whom no "no" may turn up behind it
    assert place.known() is Unanswered
    place.learn("", BOB)
    place.learn("yes", ANN)
    assert (place.known(ANN), place.known(BOB)) == ("yes", "")


def test_each_source_is_started_and_stopped_once() -> None:
    one, other = Oracle(), Oracle()
    lookups = Lookups({Kind.DOMAIN: one, Kind.RECIPIENT: one, Kind.CLIENT: other})
    assert one.calls == other.calls == []
    lookups.start()
    lookups.stop()
    assert one.calls == other.calls == ["start", "stop"]
    lookups.look_up(Question(Kind.CLIENT, "192.0.2.7"))
    assert (one.asked, other.asked) == ([], ["192.0.2.7"])


# Threads that ask


class Database:
    """What threads ask: it answers once `open` is set. known: whom it knows.

    late: called before it fails, as it takes its time.
    """

    def __init__(self, *known: str) -> None:
        self.known = {*known}
        self.wrong: Exception | None = None
        self.late: Callable[[], None] = lambda: None
        self.open = threading.Event()
        self.open.set()
        self.asked: list[str] = []
        self.arrived = threading.Semaphore(0)

    def __call__(self, about: str) -> bool:
        self.asked.append(about)
        self.arrived.release()
        assert self.open.wait(SOON)
        if self.wrong is not None:
            self.late()
            raise self.wrong
        return about in self.known


class Threads:
    """An AskedByThreads that is at work, and what it answers."""

    def __init__(self, threads: int = 1) -> None:
        self.clock = Clock()
        self.database = Database("ann")
        self.source = AskedByThreads("users", self.database, TTL, threads, self.clock)
        self.answers: SimpleQueue[tuple[str, Answer, float]] = SimpleQueue()

    def ask(self, about: str) -> None:
        """Ask; the answer comes later."""
        self.source.ask(about, lambda answer, seconds: self.answers.put((about, answer, seconds)))

    def answer(self, about: str) -> tuple[Answer, float]:
        """Ask, and wait for the answer."""
        self.ask(about)
        return self.next()[1:]

    def next(self) -> tuple[str, Answer, float]:
        """The next answer to come: to what, which, for how long."""
        return self.answers.get(timeout=SOON)


@contextmanager
def running(threads: int = 1) -> Iterator[Threads]:
    """Threads that are stopped at the end."""
    before = {*threading.enumerate()}
    made = Threads(threads)
    made.source.start()
    own = {*threading.enumerate()} - before
    assert len(own) == threads
    try:
        yield made
    finally:
        made.database.open.set()
        made.source.stop()
        for thread in own:
            thread.join(SOON)
    assert not any(thread.is_alive() for thread in own)


def test_threads_ask_and_answer() -> None:
    with running() as made:
        assert made.answer("ann") == ("yes", TTL)
        assert made.answer("bob") == ("", TTL)
        made.database.known.add("bob")
        assert made.answer("bob") == ("yes", TTL)


def test_a_failure_is_no_answer_and_asked_again_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with running() as made:
        made.database.wrong = OSError("the database is gone")
        made.database.late = lambda: made.clock.pass_by(1.0)
        for _ in range(3):
            assert made.answer("ann") == (None, AGAIN)
        assert made.database.asked == ["ann"]
        made.clock.now += AGAIN - 0.001
        assert made.answer("bob") == (None, AGAIN)
        assert made.database.asked == ["ann"]
        made.clock.now += 0.001
        made.database.wrong = ValueError("and now in other words")
        assert made.answer("bob") == (None, AGAIN)
        assert made.database.asked == ["ann", "bob"]
        made.database.late = lambda: None
        assert caplog.messages == [f"users: the database is gone{ENDS}"]
        made.clock.now += AGAIN
        made.database.wrong = None
        assert made.answer("ann") == ("yes", TTL)
        assert made.answer("bob") == ("", TTL)
        assert caplog.messages[1:] == ["users: it works again"]
        made.database.wrong = OSError("gone once more")
        made.answer("ann")
        assert caplog.messages[2:] == [f"users: gone once more{ENDS}"]


def test_a_failure_at_once_keeps_nobody_from_asking() -> None:
    """One value that the database cannot compare must not take the answers from all others."""
    with running() as made:
        made.database.wrong = OSError("Illegal mix of collations")
        assert made.answer("zoë") == (None, AGAIN)
        made.database.wrong = None
        assert made.answer("ann") == ("yes", TTL)


def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    with running() as made:
        made.database.open.clear()
        made.ask("ann")
        assert made.database.arrived.acquire(timeout=SOON)
        made.ask("bob")
        made.clock.now += PATIENCE - 1
        made.ask("carl")
        made.clock.now += 2
        made.database.open.set()
        found = [made.next() for _ in range(3)]
        assert found == [("ann", "yes", TTL), ("bob", None, AGAIN), ("carl", "", TTL)]
        assert made.database.asked == ["ann", "carl"]


def test_where_all_threads_are_kept_nobody_waits() -> None:
    with running(threads=2) as made:
        made.database.open.clear()
        made.ask("ann")
        made.ask("bob")
        for _ in range(2):
            assert made.database.arrived.acquire(timeout=SOON)
        made.clock.now += PATIENCE + 1
        assert made.answer("carl") == (None, AGAIN)
        assert made.database.asked in (["ann", "bob"], ["bob", "ann"])
        made.database.open.set()
        assert {made.next(), made.next()} == {("ann", "yes", TTL), ("bob", "", TTL)}
        assert made.answer("carl") == ("", TTL)


def test_one_thread_that_is_free_is_enough() -> None:
    with running(threads=2) as made:
        made.database.open.clear()
        made.ask("ann")
        assert made.database.arrived.acquire(timeout=SOON)
        made.clock.now += PATIENCE + 1
        made.ask("bob")
        assert made.database.arrived.acquire(timeout=SOON)
        made.database.open.set()
        assert {made.next(), made.next()} == {("ann", "yes", TTL), ("bob", "", TTL)}


def test_what_was_asked_before_the_end_is_answered() -> None:
    with running(threads=3) as made:
        made.database.open.clear()
        for i in range(30):
            made.ask(str(i))
        made.source.stop()
        made.database.open.set()
        assert {made.next()[0] for _ in range(30)} == {*map(str, range(30))}


def test_a_hundred_threads_have_one_question() -> None:
    with running() as made:
        made.database.open.clear()
        lookups = Lookups({Kind.RECIPIENT: made.source}, made.clock)
        told = [threading.Event() for _ in range(100)]

        def ask(then: Callable[[], None]) -> None:
            lookups.look_up(Question(Kind.RECIPIENT, "ann"), then)

        threads = [threading.Thread(target=ask, args=(each.set,)) for each in told]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert not any(each.is_set() for each in told)
        made.database.open.set()
        assert all(each.wait(SOON) for each in told)
        assert made.database.asked == ["ann"]
        assert lookups.answer(Question(Kind.RECIPIENT, "ann")) == "yes"
