"""Does the memory find what was put in, whoever did, and stay as small as it should?"""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd import recent
from gsmtpd.recent import KEPT, MAX_ANSWER, MAX_FOUND, SLACK, Recent

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def memory() -> Iterator[Recent]:
    made = Recent()
    yield made
    made.close()


def line(*keys: str, **fields: object) -> bytes:
    return json.dumps({**fields, "keys": [*keys]}).encode() + b"\n"


def held(memory: Recent) -> int:
    """Octets of memory that it takes."""
    return os.fstat(memory._file).st_blocks * 512


def numbers(memory: Recent, key: str, limit: int = MAX_FOUND) -> list[object]:
    return [record["n"] for record in memory.find(key, limit)]


def test_what_has_the_key_is_found_the_newest_last(memory: Recent) -> None:
    assert memory.find("a@example.com") == []
    memory.append(line("a@example.com", "192.0.2.1", n=1) + line("b@example.com", n=2))
    memory.append(line("b@example.com", "a@example.com", n=3))
    assert memory.find("a@example.com") == [{"n": 1}, {"n": 3}]
    assert numbers(memory, "B@Example.com") == [2, 3]
    assert numbers(memory, "192.0.2.1") == [1]
    for other in ("", "example.com", "a@example.co", "192.0.2.10", '"', "keys", "n", "\n", "\0"):
        assert memory.find(other) == []


def test_what_is_said_elsewhere_is_no_key(memory: Recent) -> None:
    memory.append(line("x", helo="a@example.com", n=1) + line("x", n=2))
    assert memory.find("a@example.com") == []
    assert numbers(memory, "x") == [1, 2]


@given(st.lists(st.lists(st.text(max_size=5), max_size=4), max_size=8), st.text(max_size=5))
def test_any_text_may_be_a_key(records: list[list[str]], other: str) -> None:
    memory = Recent()
    for number, keys in enumerate(records):
        memory.append(line(*(key.lower() for key in keys), n=number))
    for key in {other, *(key for keys in records for key in keys)}:
        wanted = [n for n, keys in enumerate(records) if key.lower() in [k.lower() for k in keys]]
        assert numbers(memory, key) == wanted
    memory.close()


def test_no_more_than_asked_for(memory: Recent) -> None:
    memory.append(b"".join(line("a", n=n) for n in range(250)))
    assert numbers(memory, "a", 3) == [247, 248, 249]
    assert numbers(memory, "a") == [*range(150, 250)]


def test_no_more_than_an_answer_holds(memory: Recent) -> None:
    for n in range(90):
        memory.append(line("a", n=n, text="ü" * 300))
    found = memory.find("a")
    assert len(json.dumps(found)) <= MAX_ANSWER
    assert [record["n"] for record in found] == [*range(90 - len(found), 90)]
    assert len(found) > 25


@pytest.mark.parametrize(
    "torn", [b'{"keys": ["a"', b'{"keys": ["a"], "n": 1}', b'[["a"]]\n', b'"a"\n', b"\0\0\0"]
)
def test_half_a_line_spoils_no_other(memory: Recent, torn: bytes) -> None:
    memory.append(line("a", n=0))
    os.write(memory._file, torn)  # as by a worker that was killed
    assert numbers(memory, "a") == [0]
    memory.append(line("a", n=2))
    assert [n for n in numbers(memory, "a") if n != 1] == [0, 2]


def test_a_flood_leaves_the_newest_and_takes_no_more_room(memory: Recent) -> None:
    line_of_1000 = line("a", n=0, text="x" * 970)
    piece = line_of_1000 * 64
    most = 0
    memory.append(line("first", n=1))
    for n in range(1024):
        memory.append(piece + line("b", n=n))
        most = max(most, held(memory))
    assert os.fstat(memory._file).st_size > 60 * 2**20
    assert KEPT < most <= KEPT + SLACK + 2 * len(piece) + 2 * resource.getpagesize()
    assert memory.find("first") == []
    assert numbers(memory, "b", 10) == [*range(1014, 1024)]
    memory.trim()
    assert held(memory) <= KEPT + 2 * resource.getpagesize()
    assert numbers(memory, "b", 10) == [*range(1014, 1024)]
    memory.trim()
    assert numbers(memory, "b", 1) == [1023]


def test_where_no_hole_can_be_made_all_is_forgotten(
    memory: Recent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Recent) -> None:
        raise PermissionError

    monkeypatch.setattr(Recent, "_make_hole", fails)
    for n in range(100):
        memory.append(line("a", n=n, text="x" * 200_000))
        assert held(memory) <= KEPT + SLACK + 300_000
    memory.append(line("b", n=100))
    assert numbers(memory, "b") == [100]


def test_since_when(memory: Recent) -> None:
    assert memory.began() is None
    memory.append(line("a", time="T1"))
    assert memory.began() is None, "nothing is gone"
    memory.append(line("a", time="T2", text="x" * KEPT))
    memory.append(line("a", time="T3"))
    assert memory.began() == "T3"


def test_what_did_not_get_in_is_counted(memory: Recent) -> None:
    assert memory.lost() == 0
    memory.append(b'{"lost": 3}\n' + line("a", text='{"lost": 100}') + b'{"lost": 4}\n')
    assert memory.lost() == 7
    assert memory.find("lost") == []


def test_all_workers_write_and_their_end_takes_nothing_along(memory: Recent) -> None:
    """Whole lines, in threads of several processes at once, one of which is killed."""

    def write(worker: int, thread: int) -> None:
        for n in range(200):
            memory.append(line(f"w{worker}", n=thread * 200 + n) * 3)

    pids = []
    for worker in range(4):
        pid = os.fork()
        if pid == 0:
            threads = [threading.Thread(target=write, args=(worker, n)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            os.kill(os.getpid(), signal.SIGKILL)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    octets, _ = memory._read()
    records = [json.loads(each) for each in octets.split(b"\n") if each]
    for worker in range(4):
        written = [r["n"] for r in records if r["keys"] == [f"w{worker}"]]
        assert sorted(written) == sorted([*range(600)] * 3)


def test_a_closed_one_is_empty_and_raises_nothing(memory: Recent) -> None:
    memory.append(line("a", n=1))
    memory.close()
    memory.close()
    memory.append(line("a", n=2))
    memory.trim()
    assert (memory.find("a"), memory.began(), memory.lost()) == ([], None, 0)


def test_a_system_that_has_no_such_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        memory = Recent()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    memory.append(line("a"))
    assert memory.find("a") == []
    assert "Too many open files" in caplog.text
    assert recent.__name__ in {record.name for record in caplog.records}


# --- since ----------------------------------------------------------------------------------------


def told(memory: Recent, position: str) -> tuple[list[object], str, int]:
    found, position, lost = memory.since(position)
    assert all("keys" not in record for record in found)
    return [record["n"] for record in found], position, lost


def event(n: int, **more: object) -> bytes:
    return line("x", time="2026-01-01T00:00:00Z", n=n, **more)


def test_what_came_since(memory: Recent) -> None:
    nothing, start, _ = told(memory, "")
    assert nothing == []
    assert told(memory, start) == ([], start, 0)
    memory.append(event(1) + event(2))
    found, second, lost = told(memory, start)
    assert (found, lost) == ([1, 2], 0)
    assert told(memory, second) == ([], second, 0)
    assert told(memory, "")[:2] == ([], second)
    memory.append(event(3) + b'{"lost": 7}\n')
    found, _, lost = told(memory, second)
    assert (found, lost) == ([3], 7)
    assert told(memory, start)[0] == [1, 2, 3]


def test_of_a_server_before_this_one_all_is_new(memory: Recent) -> None:
    memory.append(event(1))
    assert told(memory, "abc123-99")[0] == [1]


def test_half_a_line_waits(memory: Recent) -> None:
    _, start, _ = told(memory, "")
    os.write(memory._file, b"\n" + event(1) + event(2)[:-5])
    found, middle, _ = told(memory, start)
    assert found == [1]
    assert told(memory, "")[1] == middle
    os.write(memory._file, event(2)[-5:])
    assert told(memory, middle)[0] == [2]


def test_more_than_one_answer_holds_comes_with_the_next(memory: Recent) -> None:
    _, position, _ = told(memory, "")
    memory.append(b"".join(event(n, text="x" * 900) for n in range(200)))
    found: list[object] = []
    answers = 0
    while len(found) < 200:
        more, _, _ = memory.since(position)
        assert 0 < len(json.dumps(more)) <= MAX_ANSWER
        numbers, position, lost = told(memory, position)
        assert lost == 0
        found += numbers
        answers += 1
    assert found == [*range(200)]
    assert answers == 4


def test_a_record_that_is_too_long_for_an_answer_does_not_stop_it(memory: Recent) -> None:
    """As of a thousand long recipients in UTF-8, which a client may choose."""
    _, position, _ = told(memory, "")
    memory.append(event(1) + event(2, text="x" * 2_000_000) + event(3))
    found: list[object] = []
    lost = 0
    for _ in range(20):
        more, position, missing = told(memory, position)
        found += more
        lost += missing
    assert found == [1, 3]
    assert lost > 0


def test_what_was_given_back_is_lost(memory: Recent) -> None:
    _, position, _ = told(memory, "")
    filling = b"".join(event(0, text="x" * 900) for _ in range(100))
    for _ in range((KEPT + SLACK) // len(filling) + 2):
        memory.append(filling)
    missing = os.fstat(memory._file).st_size - KEPT
    found, position, lost = told(memory, position)
    assert found
    assert abs(lost - missing / len(event(0, text="x" * 900))) < 5
    assert told(memory, position)[2] == 0


@pytest.mark.parametrize("position", ["x", "-", "1-", "-1", "1-x", "1--1", "1-\u0661", "../a-1"])
def test_no_position(memory: Recent, position: str) -> None:
    with pytest.raises(ValueError, match="position"):
        memory.since(position)


@pytest.mark.parametrize("place", ["99", "9" * 30])
def test_a_position_that_does_not_exist(memory: Recent, place: str) -> None:
    memory.append(event(1))
    _, position, _ = told(memory, "")
    assert told(memory, f"{position.partition('-')[0]}-{place}")[:2] == ([], position)
    memory.close()
    assert told(memory, position)[0] == []
