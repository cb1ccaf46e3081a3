"""Does whoever asks a hook hear a verdict, just one, whatever the hook does?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

import pytest

from gsmtpd.handlers import hook_threads
from gsmtpd.handlers.hook_threads import Hook, MessageHook, RecipientHook, Verdict
from gsmtpd.handlers.hooks import Incoming, Recipient, refuse
from gsmtpd.message.row import Message
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.reply import HOOK_TROUBLE
from tests.servers import wait_for

NO = refuse("no")
SOON = 20.0  # seconds; for what has to happen, and mostly has happened already
LONG = 600.0  # seconds that no test takes


AHook = TypeVar("AHook", bound=Hook)


@contextmanager
def started(hook: AHook) -> Iterator[AHook]:
    hook.start()
    yield hook
    hook.stop()


class Asker:
    """Asks a hook, and keeps what it hears."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self.heard: SimpleQueue[Verdict] = SimpleQueue()

    def ask(self, about: object) -> None:
        self._hook.ask(lambda: about, self.heard.put)

    def verdict(self) -> Verdict:
        return self.heard.get(timeout=SOON)


def hook(
    function: Callable[[object], object], time_limit: float = LONG, trouble: Verdict = HOOK_TROUBLE
) -> Hook:
    return Hook("hook test", function, time_limit, trouble, threads=2)


def test_what_it_says_is_the_verdict() -> None:
    with started(hook(lambda about: NO if about == "bad" else None)) as asked:
        asker = Asker(asked)
        for about, verdict in (("bad", NO), ("good", None), ("bad", NO)):
            asker.ask(about)
            assert asker.verdict() == verdict


def exits(about: object) -> None:
    raise SystemExit


@pytest.mark.parametrize("function", [lambda about: 1 // 0, lambda about: "nonsense", exits])
@pytest.mark.parametrize("trouble", [HOOK_TROUBLE, None])
def test_one_that_fails(function: Callable[[object], object], trouble: Verdict) -> None:
    """More often than there are threads: none is lost by it."""
    with started(hook(function, trouble=trouble)) as asked:
        asker = Asker(asked)
        for _ in range(5):
            asker.ask(0)
            assert asker.verdict() == trouble


def test_hooks_that_hang_and_come_back() -> None:
    """Who waits hears in time; then nobody is kept waiting, and when they are back it goes on."""
    go_on = threading.Event()

    def hangs(about: object) -> Verdict:
        go_on.wait(SOON)
        return NO

    with started(hook(hangs, 0.2)) as asked:
        asker = Asker(asked)
        for _ in range(4):  # two in threads, two in the queue
            asker.ask(0)
        assert [asker.verdict() for _ in range(4)] == [HOOK_TROUBLE] * 4
        wait_for(lambda: _at_once(asked))
        go_on.set()
        wait_for(lambda: "0 of 2" in str(asked))
        assert asker.heard.empty(), "what comes late is nobody's any more"
        asker.ask(0)
        assert asker.verdict() == NO


def _at_once(asked: Hook) -> bool:
    """Whether it answers before `ask` returns."""
    heard: list[Verdict] = []
    asked.ask(lambda: 0, heard.append)
    return heard == [HOOK_TROUBLE]


def test_one_that_hangs_does_not_keep_others_waiting() -> None:
    go_on = threading.Event()
    with started(hook(lambda about: go_on.wait(SOON) and None if about else NO)) as asked:
        slow, quick = Asker(asked), Asker(asked)
        slow.ask(1)
        for _ in range(3):
            quick.ask(0)
            assert quick.verdict() == NO
        assert slow.heard.empty()
        go_on.set()
        assert slow.verdict() is None


def test_what_waits_in_vain_is_not_looked_at_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """And what it was about is let go of: it may be a large message."""
    go_on, seen = threading.Event(), []

    def hangs(about: object) -> None:
        seen.append(about)
        go_on.wait(SOON)

    with started(hook(hangs, 0.2)) as asked:
        asker = Asker(asked)
        for number in range(2):
            asker.ask(number)
        wait_for(lambda: len(seen) == 2)
        asker.ask("late")
        assert [asker.verdict() for _ in range(3)] == [HOOK_TROUBLE] * 3
        go_on.set()
        wait_for(lambda: "0 of 2" in str(asked))
        wait_for(lambda: not _at_once(asked))
        assert "late" not in seen
    assert "failed" not in caplog.text


def test_a_client_that_cannot_be_told_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    def gone(verdict: Verdict) -> None:
        raise OSError("its thread has ended")

    with started(hook(lambda about: NO)) as asked:
        for _ in range(5):
            asked.ask(lambda: 0, gone)
        asker = Asker(asked)
        asker.ask(0)
        assert asker.verdict() == NO
    assert "its thread has ended" in caplog.text


def test_trouble_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each mail, though the text of an error may name it; and not each time it works."""

    def moody(about: int) -> Verdict:
        if about % 3 == 0:
            raise ValueError(f"mail {about} is\nbad")
        return "x" if about % 3 == 1 else NO  # type: ignore[return-value]

    with started(hook(moody)) as asked, caplog.at_level(logging.WARNING):  # type: ignore[arg-type]
        asker = Asker(asked)
        for number in range(30):
            asker.ask(number)
            asker.verdict()

        # A thread of the test before may say something as late as this.
        def told() -> list[logging.LogRecord]:
            return [record for record in caplog.records if record.name == "gsmtpd.complaints"]

        first, second = told()
        ends = "; answered with 451 where that happens"
        where = f"(test_hook_threads.py, line {moody.__code__.co_firstlineno + 2})"
        said = f"hook test: it failed: ValueError: mail 0 is bad {where}{ends}"
        assert first.getMessage() == said
        assert first.exc_info and first.exc_info[0] is ValueError, "its traceback"
        assert second.getMessage().startswith("hook test: it returned str; a hook returns None")
        monkeypatch.setattr(hook_threads, "QUIET", 0.0)
        asker.ask(2)
        assert asker.verdict() == NO
        assert [record.getMessage() for record in told()[2:]] == ["hook test: it works again"]


ANN, BOB = Mailbox("ann", "example.com"), Mailbox("bob", "example.com")


def test_what_it_sees_of_a_recipient() -> None:
    seen: SimpleQueue[Recipient] = SimpleQueue()
    with started(RecipientHook("hook rcpt", seen.put, LONG, None)) as asked:  # type: ignore[arg-type]
        taken = [ANN]
        asked.ask_of(("192.0.2.1", "h", "TLSv1.3:X"), None, BOB, taken, lambda verdict: None)
        taken.append(BOB)  # by the session, meanwhile
        assert seen.get(timeout=SOON) == Recipient(
            "192.0.2.1", "h", "", "bob@example.com", True, ("ann@example.com",)
        )


def test_what_it_sees_of_a_message() -> None:
    seen: SimpleQueue[Incoming] = SimpleQueue()
    envelope = Envelope("h", True, ANN, (ANN,), discarded=(BOB,))
    message = Message("1a", envelope, b"Subject: x\r\n\r\n", "192.0.2.1", 0.0)
    with started(MessageHook("hook data", seen.put, LONG, None)) as asked:  # type: ignore[arg-type]
        asked.ask_of(message, lambda verdict: None)
        both = ("ann@example.com", "bob@example.com")
        assert seen.get(timeout=SOON) == Incoming(
            "1a", "192.0.2.1", "h", "ann@example.com", False, both, message.content
        )
