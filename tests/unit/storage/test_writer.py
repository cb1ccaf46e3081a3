"""How do messages share commits, and does each come back exactly once?"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import writer as module
from gsmtpd.storage.base import Letter, Outcome, Store, StoreError
from gsmtpd.storage.job import Job
from gsmtpd.storage.writer import READ_AT_ONCE, Batch, GroupCommitWriter
from tests.servers import wait_for

READ = RowMaker("mx.example.com").read(
    Message("", Envelope("x", True, None, ()), b"", "192.0.2.1", 0.0)
)
WAIT = 30.0  # seconds; nothing here takes that long unless it is broken


def message(name: str, recipients: int = 1, size: int = 10) -> Message:
    boxes = tuple(Mailbox(f"r{n}", "example.com") for n in range(recipients))
    envelope = Envelope("client.example", True, None, boxes)
    return Message(name, envelope, b"x" * size, "192.0.2.1", 0.0)


class Notebook:
    """A store that notes what it is given. gate: closed, it keeps a write from ending."""

    def __init__(self, decide: Callable[[str], Outcome] = lambda name: Outcome.STORED) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.prepared = 0
        self.closed = False
        self._decide = decide

    def prepare(self) -> None:
        self.prepared += 1

    def read(self, message: Message) -> Letter:
        return Letter(message, READ)

    encode = read

    def write(self, letters: Sequence[Letter]) -> list[Outcome]:
        names = [letter.message.id for letter in letters]
        self.batches.append(names)
        assert self.gate.wait(WAIT)
        return [self._decide(name) for name in names]

    def close(self) -> None:
        self.closed = True


class Owner:
    """Takes jobs back."""

    def __init__(self) -> None:
        self.returned: list[Job] = []
        self.woken = 0  # with how many jobs it was woken last

    def put(self, job: Job) -> None:
        self.returned.append(job)

    def wake(self) -> None:
        self.woken = len(self.returned)

    def outcomes(self) -> dict[str, Outcome | None]:
        return {job.message.id: job.outcome for job in self.returned}

    def wait(self, number: int) -> None:
        wait_for(lambda: self.woken >= number, WAIT)
        assert len(self.returned) == number


@contextmanager
def running(
    store: Store, threads: int = 1, clock: Callable[[], float] = time.monotonic
) -> Iterator[GroupCommitWriter]:
    writer = GroupCommitWriter(store, threads, clock)
    writer.start()
    yield writer
    assert writer.stop(WAIT)


def submit(writer: GroupCommitWriter, owner: Owner, *names: str, now: float = 0.0) -> None:
    """Submit messages of these names. now: when they came; 0: just now."""
    for name in names:
        writer.submit(Job(message(name), owner, None, now or time.monotonic()))


def test_a_message_alone_is_written_at_once() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 3) as writer:
        for number in range(5):
            submit(writer, owner, f"m{number}")
            owner.wait(number + 1)
    assert store.batches == [[f"m{n}"] for n in range(5)]
    assert set(owner.outcomes().values()) == {Outcome.STORED}


def test_what_comes_during_a_write_is_the_next_batch() -> None:
    store, owner = Notebook(), Owner()
    names = [f"m{n}" for n in range(50)]
    with running(store, 3) as writer:
        store.gate.clear()
        submit(writer, owner, "first")
        wait_for(lambda: store.batches)
        submit(writer, owner, *names)
        assert writer.waiting == 50
        store.gate.set()
        owner.wait(51)
    assert store.batches == [["first"], names]


@pytest.mark.parametrize("threads", [1, 4])
def test_each_comes_back_once_to_its_owner_with_its_own_outcome(threads: int) -> None:
    chance = random.Random(1)
    kinds = [*Outcome]

    def decide(name: str) -> Outcome:
        if chance.random() < 0.01:
            time.sleep(0.001)
        if name.endswith("13"):
            raise RuntimeError("unlucky")
        return kinds[int(name) % len(kinds)]

    store = Notebook(decide)
    owners = [Owner() for _ in range(4)]
    with running(store, threads) as writer:

        def send(owner: Owner, start: int) -> None:
            for number in range(start, 4000, len(owners)):
                submit(writer, owner, str(number))
                if number % 100 < len(owners):
                    time.sleep(0.001)

        senders = [threading.Thread(target=send, args=(o, n)) for n, o in enumerate(owners)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        for owner in owners:
            wait_for(lambda: owner.woken >= 1000, WAIT)  # noqa: B023
    unlucky = {
        name for batch in store.batches if any(n.endswith("13") for n in batch) for name in batch
    }
    for start, owner in enumerate(owners):
        assert Counter(job.message.id for job in owner.returned) == Counter(
            str(n) for n in range(start, 4000, len(owners))
        )
        for name, outcome in owner.outcomes().items():
            wanted = Outcome.TROUBLE if name in unlucky else kinds[int(name) % len(kinds)]
            assert outcome is wanted
    assert sorted(int(n) for batch in store.batches for n in batch) == [*range(4000)]


class Client:
    """What a job is for."""


@pytest.mark.parametrize("size", [10, READ_AT_ONCE + 1])
def test_nothing_is_kept_of_a_message_that_is_stored(size: int) -> None:
    """A thread that waits for the next one would keep up to 8 MiB until that comes."""
    store, owner, client = Notebook(), Owner(), Client()
    with running(store) as writer:
        writer.submit(Job(message("m", size=size), owner, client, time.monotonic()))
        owner.wait(1)
        kept = weakref.ref(client)
        owner.returned.clear()
        del client
        wait_for(lambda: kept() is None)


def test_a_store_that_raises_is_trouble_and_not_the_end() -> None:
    def decide(name: str) -> Outcome:
        if name == "bad":
            raise RuntimeError("a fault of ours")
        return Outcome.STORED

    store, owner = Notebook(decide), Owner()
    with running(store) as writer:
        submit(writer, owner, "bad")
        owner.wait(1)
        submit(writer, owner, "good")
        owner.wait(2)
    assert owner.outcomes() == {"bad": Outcome.TROUBLE, "good": Outcome.STORED}


def test_one_that_cannot_be_made_does_not_keep_the_others_of_its_round() -> None:
    class Fussy(Notebook):
        def encode(self, message: Message) -> Letter:
            if message.id == "bad":
                raise RuntimeError("a fault of ours")
            return super().encode(message)

    store, owner = Fussy(), Owner()
    with running(store) as writer:
        now = time.monotonic()
        writer.submit(*(Job(message(name), owner, None, now) for name in ("a", "bad", "b")))
        owner.wait(3)
    assert owner.outcomes() == dict.fromkeys("ab", Outcome.STORED) | {"bad": Outcome.TROUBLE}
    assert [name for batch in store.batches for name in batch] == ["a", "b"]


def test_a_store_that_answers_for_too_few_is_trouble() -> None:
    class Forgetful(Notebook):
        def write(self, letters: Sequence[Letter]) -> list[Outcome]:
            return super().write(letters)[1:]

    owner = Owner()
    with running(Forgetful()) as writer:
        submit(writer, owner, "one")
        owner.wait(1)
    assert owner.outcomes() == {"one": Outcome.TROUBLE}


def test_what_waited_too_long_goes_back_unwritten() -> None:
    store, owner = Notebook(), Owner()
    now = 1000.0
    with running(store, clock=lambda: now) as writer:
        store.gate.clear()
        submit(writer, owner, "first", now=now)
        wait_for(lambda: store.batches)
        submit(writer, owner, "old", now=now)
        submit(writer, owner, "young", now=now + 1)
        now += module.GIVE_UP_AFTER + 0.5
        store.gate.set()
        owner.wait(3)
    assert store.batches == [["first"], ["young"]]
    assert owner.outcomes()["old"] is Outcome.TROUBLE
    assert owner.outcomes()["young"] is Outcome.STORED


def test_a_further_writer_helps_where_many_wait() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 2) as writer:
        store.gate.clear()
        submit(writer, owner, "first")
        wait_for(lambda: store.batches)
        submit(writer, owner, *(f"m{n}" for n in range(module.SECOND_WRITER_FROM)))
        wait_for(lambda: len(store.batches) == 2, WAIT)
        store.gate.set()
        owner.wait(module.SECOND_WRITER_FROM + 1)


def test_a_further_writer_helps_behind_a_slow_commit() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 2) as writer:
        store.gate.clear()
        submit(writer, owner, "slow")
        wait_for(lambda: store.batches)
        submit(writer, owner, "behind")
        writer.poke()
        wait_for(lambda: store.batches == [["slow"], ["behind"]], WAIT)
        store.gate.set()
        owner.wait(2)


@pytest.mark.parametrize(
    ("recipients", "size", "most"),
    [
        (1, 10, module.MAX_BATCH_ROWS),
        (100, 10, module.MAX_BATCH_ROWS // 100),
        (module.MAX_BATCH_ROWS + 1, 10, 1),
        (1, module.MAX_BATCH_BYTES // 4, 4),
        (4, module.MAX_BATCH_BYTES // 8, 2),
        (1, module.MAX_BATCH_BYTES + 1, 1),
    ],
)
def test_a_batch_is_bounded_and_takes_what_is_alone_too_big(
    recipients: int, size: int, most: int
) -> None:
    store, owner = Notebook(), Owner()
    made = message("m", recipients, size)
    with running(store) as writer:
        store.gate.clear()
        submit(writer, owner, "first")
        wait_for(lambda: store.batches)
        for _ in range(2 * most + 1):
            writer.submit(Job(made, owner, None, time.monotonic()))
        store.gate.set()
        owner.wait(2 * most + 2)
    assert [len(batch) for batch in store.batches] == [1, most, most, 1]


def test_stop_writes_what_waits() -> None:
    store, owner = Notebook(), Owner()
    writer = GroupCommitWriter(store, 2)
    writer.start()
    store.gate.clear()
    submit(writer, owner, "first")
    wait_for(lambda: store.batches)
    submit(writer, owner, "second", "third")
    threading.Timer(0.2, store.gate.set).start()
    assert writer.stop(WAIT)
    assert owner.outcomes() == dict.fromkeys(["first", "second", "third"], Outcome.STORED)
    assert store.closed


def test_stop_does_not_wait_for_ever() -> None:
    store, owner = Notebook(), Owner()
    writer = GroupCommitWriter(store, 1)
    writer.start()
    store.gate.clear()
    submit(writer, owner, "stuck")
    wait_for(lambda: store.batches)
    assert not writer.stop(0.1)
    assert not store.closed, "a store in use was closed"
    store.gate.set()
    owner.wait(1)


def test_the_store_is_looked_at_until_it_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PREPARE_AGAIN", 0.01)

    class Away(Notebook):
        def prepare(self) -> None:
            super().prepare()
            if self.prepared == 1:
                raise StoreError("away")
            if self.prepared == 2:
                raise RuntimeError("a fault of ours")

    store = Away()
    with running(store, 2):
        wait_for(lambda: store.prepared == 3)
    assert store.prepared == 3


def test_mail_does_not_wait_for_a_store_that_is_away() -> None:
    class Away(Notebook):
        def prepare(self) -> None:
            super().prepare()
            raise StoreError("away")

    store, owner = Away(lambda name: Outcome.TROUBLE), Owner()
    with running(store) as writer:
        wait_for(lambda: store.prepared)
        submit(writer, owner, "one")
        owner.wait(1)
    assert owner.outcomes() == {"one": Outcome.TROUBLE}


# --- lanes ----------------------------------------------------------------------------------------


def names_of(batch: Batch) -> list[str]:
    return [job.message.id for job, _ in batch]


def takes(letter: Letter) -> bool:
    """Whether a lane takes it."""
    return not letter.message.id.startswith("big")


def test_a_lane_claims_what_waits_and_no_thread_is_woken() -> None:
    store, owner, woken = Notebook(), Owner(), [0]

    def wake() -> None:
        woken[0] += 1

    with running(store, 2) as writer:
        writer.lane_opened(wake, takes)
        submit(writer, owner, "a", "b")
        assert writer.claim(3) == []
        batch = writer.claim(2)
        assert names_of(batch) == ["a", "b"]
        submit(writer, owner, "c")
        second = writer.claim(1)
        assert names_of(second) == ["c"]
        submit(writer, owner, "d")
        assert writer.claim(1) == []  # two write already
        assert store.batches == []
        writer.release()
        assert names_of(writer.claim(1)) == ["d"]
        writer.release()
        writer.release()
        assert woken == [0]  # it is its thread that submits
        assert owner.returned == []


def test_what_a_lane_leaves_is_written_as_it_is() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 2) as writer:
        writer.lane_opened(lambda: None, takes)
        submit(writer, owner, "a", "b")
        batch = writer.claim(1)
        submit(writer, owner, "c")
        writer.leave(batch)
        writer.release()
        owner.wait(2)
        assert store.batches == [["a", "b"]]
        assert names_of(writer.claim(1)) == ["c"]
        writer.release()


def test_without_a_lane_threads_write_again() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 2) as writer:
        writer.lane_opened(lambda: None, takes)
        writer.lane_opened(lambda: None, takes)
        submit(writer, owner, "a")
        writer.lane_lost()
        assert store.batches == []
        writer.lane_lost()
        owner.wait(1)
        submit(writer, owner, "b")
        owner.wait(2)
    assert store.batches == [["a"], ["b"]]


def test_a_lane_is_told_when_a_thread_has_written_and_more_waits() -> None:
    store, owner, woken = Notebook(), Owner(), threading.Event()
    with running(store, 2) as writer:
        writer.lane_opened(woken.set, takes)
        submit(writer, owner, "a")
        store.gate.clear()
        writer.poke()
        wait_for(lambda: store.batches)
        woken.clear()
        submit(writer, owner, "b")
        assert not woken.is_set()
        store.gate.set()
        assert woken.wait(WAIT)
        assert names_of(writer.claim(1)) == ["b"]
        writer.release()


def test_what_no_lane_takes_shares_commits() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 2) as writer:
        writer.lane_opened(lambda: None, takes)
        store.gate.clear()
        submit(writer, owner, "big0")
        wait_for(lambda: store.batches)
        for number in range(1, 9):
            submit(writer, owner, f"big{number}")
            assert writer.claim(1) == []
        submit(writer, owner, "a")
        assert names_of(writer.claim(1)) == ["a"]
        writer.release()
        time.sleep(0.1)  # a second writer would have begun
        assert store.batches == [["big0"]]
        store.gate.set()
        owner.wait(9)
    assert store.batches == [["big0"], [f"big{number}" for number in range(1, 9)]]


def test_lanes_go_on_beside_writers_that_are_stuck() -> None:
    store, owner = Notebook(), Owner()
    with running(store, 2) as writer:
        woken = threading.Event()
        writer.lane_opened(woken.set, takes)
        store.gate.clear()
        for number in (1, 2):
            submit(writer, owner, f"big{number}")
            writer.poke()
            wait_for(lambda number=number: len(store.batches) == number)
        submit(writer, owner, "a")
        assert names_of(writer.claim(1)) == ["a"]
        submit(writer, owner, "b")
        assert writer.claim(1) == []  # three would write
        woken.clear()
        writer.poke()  # but this one waits for the stuck ones
        assert woken.is_set()
        assert names_of(writer.claim(1)) == ["b"]
        submit(writer, owner, "c")
        assert writer.claim(1) == []
        writer.release()
        writer.release()
        assert names_of(writer.claim(1)) == ["c"]
        writer.release()
        store.gate.set()
        owner.wait(2)


@pytest.mark.parametrize("in_doubt", [False, True])
def test_what_a_lane_leaves_late(in_doubt: bool) -> None:
    """It goes back unwritten, as its clients have heard 451, unless it may be stored already."""
    store, owner, now = Notebook(), Owner(), [100.0]
    with running(store, 1, lambda: now[0]) as writer:
        writer.lane_opened(lambda: None, takes)
        submit(writer, owner, "old", now=now[0])
        now[0] += module.GIVE_UP_AFTER - 1
        submit(writer, owner, "young", now=now[0])
        batch = writer.claim(1)
        now[0] += 2
        writer.leave(batch, in_doubt)
        writer.release()
        owner.wait(2)
    if in_doubt:
        assert store.batches == [["old", "young"]]
    else:
        assert store.batches == [["young"]]
        assert owner.outcomes() == {"old": Outcome.TROUBLE, "young": Outcome.STORED}


def test_a_stop_waits_for_what_is_claimed() -> None:
    store, owner = Notebook(), Owner()
    writer = GroupCommitWriter(store, 2)
    writer.start()
    writer.lane_opened(lambda: None, takes)
    submit(writer, owner, "a")
    batch = writer.claim(1)
    assert not writer.stop(0.1)
    writer.leave(batch)
    writer.release()
    assert writer.stop(WAIT)
    assert store.batches == [["a"]]
