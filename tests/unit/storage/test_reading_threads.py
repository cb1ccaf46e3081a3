"""Are big messages read beside the others, and does each come back exactly once all the same?"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import writer as module
from gsmtpd.storage.base import Letter, Outcome, Store
from gsmtpd.storage.job import Job
from gsmtpd.storage.writer import GroupCommitWriter
from tests.servers import wait_for
from tests.unit.storage.test_writer import Notebook, Owner, message

READ = RowMaker("mx.example.com").read(
    Message("", Envelope("x", True, None, ()), b"", "192.0.2.1", 0.0)
)
WAIT = 30.0  # seconds; nothing here takes that long unless it is broken
BIG = module.READ_AT_ONCE + 1  # octets
STORED, TROUBLE = Outcome.STORED, Outcome.TROUBLE


class Library(Notebook):
    """A store that notes who reads. open: closed, it keeps big messages from being read."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.begun: list[str] = []
        self.readers: dict[str, str] = {}

    def read(self, message: Message) -> Letter:
        if len(message.content) > module.READ_AT_ONCE:
            self.begun.append(message.id)
            assert self.open.wait(WAIT)
        self.readers[message.id] = threading.current_thread().name
        if message.id.startswith("bad"):
            raise ValueError("a fault of ours")
        return Letter(message, READ)

    encode = read


@contextmanager
def running(store: Store) -> Iterator[GroupCommitWriter]:
    writer = GroupCommitWriter(store, 2)
    writer.start()
    yield writer
    assert writer.stop(WAIT)


def submit(writer: GroupCommitWriter, owner: Owner, name: str, size: int, copies: int = 1) -> None:
    writer.submit(Job(message(name, copies, size), owner, None, time.monotonic()))


def test_big_messages_do_not_hold_up_small_ones() -> None:
    """All reader threads are held, more big messages wait, and small ones pass."""
    store, owner = Library(), Owner()
    with running(store) as writer:
        store.open.clear()
        for n in range(6):
            submit(writer, owner, f"big{n}", BIG)
        wait_for(lambda: len(store.begun) == module.READERS, WAIT)
        for n in range(50):
            submit(writer, owner, f"small{n}", 100)
            owner.wait(n + 1)
        assert {job.message.id[:5] for job in owner.returned} == {"small"}
        assert writer.waiting == 6
        store.open.set()
        owner.wait(56)
        wait_for(lambda: writer.waiting == 0, WAIT)
    assert [*owner.outcomes().values()] == [STORED] * 56


@pytest.mark.parametrize(
    ("size", "reader"),
    [(module.READ_AT_ONCE, "MainThread"), (BIG, "reader"), (10 * BIG, "reader")],
)
@pytest.mark.parametrize("recipients", [1, 100])
def test_who_reads_what(size: int, reader: str, recipients: int) -> None:
    """Whoever it is, no writer: those must be free for what is ready."""
    store, owner = Library(), Owner()
    with running(store) as writer:
        submit(writer, owner, "one", size, recipients)
        owner.wait(1)
    assert store.readers["one"].startswith(reader)


def test_a_fault_in_reading_is_trouble_of_that_message_alone() -> None:
    store, owner = Library(), Owner()
    with running(store) as writer:
        for n in range(20):
            submit(writer, owner, f"bad{n}", BIG)
            submit(writer, owner, f"good{n}", BIG)
        owner.wait(40)
        wait_for(lambda: writer.waiting == 0, WAIT)
    for name, outcome in owner.outcomes().items():
        assert outcome is (TROUBLE if name.startswith("bad") else STORED)
    assert Counter(name for batch in store.batches for name in batch) == Counter(
        f"good{n}" for n in range(20)
    )


def test_many_of_all_sizes_come_back_once() -> None:
    store, owners = Library(), [Owner() for _ in range(4)]
    sizes = [10, module.READ_AT_ONCE, BIG, 4 * BIG]
    with running(store) as writer:

        def send(owner: Owner, start: int) -> None:
            for n in range(start, 1000, len(owners)):
                submit(writer, owner, f"{n}", sizes[n % len(sizes)])

        threads = [threading.Thread(target=send, args=(o, n)) for n, o in enumerate(owners)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for owner in owners:
            wait_for(lambda: owner.woken >= 250, WAIT)  # noqa: B023
    for start, owner in enumerate(owners):
        assert Counter(job.message.id for job in owner.returned) == Counter(
            str(n) for n in range(start, 1000, len(owners))
        )
        assert set(owner.outcomes().values()) == {STORED}
    assert sorted(int(n) for batch in store.batches for n in batch) == [*range(1000)]


def test_stop_writes_what_is_still_being_read() -> None:
    store, owner = Library(), Owner()
    writer = GroupCommitWriter(store, 2)
    writer.start()
    store.open.clear()
    for n in range(5):
        submit(writer, owner, f"big{n}", BIG)
    wait_for(lambda: len(store.begun) == module.READERS, WAIT)
    threading.Timer(0.2, store.open.set).start()
    assert writer.stop(WAIT)
    assert owner.outcomes() == {f"big{n}": STORED for n in range(5)}
    assert store.closed
    assert not [t for t in threading.enumerate() if t.name.startswith(("reader-", "writer-"))]


def test_stop_does_not_wait_for_ever_for_a_reader() -> None:
    store, owner = Library(), Owner()
    writer = GroupCommitWriter(store, 2)
    writer.start()
    store.open.clear()
    submit(writer, owner, "stuck", BIG)
    wait_for(lambda: store.begun, WAIT)
    assert not writer.stop(0.1), "a message is left, and stop says that all is done"
    assert not store.closed, "a store in use was closed"
    store.open.set()


def test_what_was_read_too_late_goes_back_unwritten() -> None:
    store, owner = Library(), Owner()
    now = 1000.0
    writer = GroupCommitWriter(store, 1, lambda: now)
    writer.start()
    store.open.clear()
    writer.submit(Job(message("late", 1, BIG), owner, None, now))
    wait_for(lambda: store.begun, WAIT)
    now += module.GIVE_UP_AFTER + 1
    store.open.set()
    owner.wait(1)
    assert owner.outcomes() == {"late": TROUBLE}
    assert store.batches == []
    assert writer.stop(WAIT)
