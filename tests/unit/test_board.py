"""Does a thread show what it does, whole, and only while somebody looks?"""

from __future__ import annotations

import os
import time

import pytest

from gsmtpd import board, telling
from gsmtpd.board import SLOT, Board, Shown, Slot


def session(number: int, seconds: float = 1.0) -> dict[str, object]:
    return {"client": f"192.0.2.{number}", "seconds": seconds, "doing": "x" * 80}


def slow(delay: float) -> dict[str, object]:
    return {"delay": delay, "id": f"{delay}"}


def test_it_is_asked_for_a_while() -> None:
    made = Board()
    assert not Slot(made, 1).asked_for
    made.ask()
    assert Slot(made, 1).asked_for
    made._asked_at[0] -= round((board.ASKED_FOR + 1) * 1e9)
    assert not made.asked


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_another_process_shows() -> None:
    made = Board()
    assert made.read(range(5)) == []
    pid = os.fork()
    if pid == 0:
        while not made.asked:
            time.sleep(0.001)
        Slot(made, 3).show(Shown([session(1)], [slow(0.5)]))
        os._exit(0)
    made.ask()
    assert os.waitpid(pid, 0)[1] == 0
    assert made.read([1, 3]) == [Shown([session(1)], [slow(0.5)])]
    assert made.read([2, 4]) == []


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    made = Board()
    many = [session(number) for number in range(200)]
    Slot(made, 0).show(Shown(many, [slow(0.5)]))
    Slot(made, 1).show(Shown(many[:1], []))
    [first, second] = made.read([0, 1])
    assert 20 < len(first.sessions) < 200
    assert first.sessions == many[: len(first.sessions)]
    assert first.slowest == [slow(0.5)]
    assert second.sessions == many[:1]


def test_a_shorter_one_takes_the_place_of_a_longer() -> None:
    made = Board()
    Slot(made, 0).show(Shown([session(number) for number in range(30)], []))
    Slot(made, 0).show(Shown([session(1)], []))
    assert made.read([0]) == [Shown([session(1)], [])]


@pytest.mark.parametrize("at", [0, 5, 30, SLOT - 1])
def test_half_a_slot_is_none(at: int) -> None:
    """As it is read while its thread writes."""
    made = Board()
    Slot(made, 0).show(Shown([session(number) for number in range(50)], []))
    octets = os.pread(made._file, SLOT, 0)
    os.pwrite(made._file, bytes([octets[at] ^ 1]) if at < len(octets) else b"", at)
    assert len(made.read([0])) == (0 if at < len(octets) else 1)


def test_what_is_old_is_of_a_thread_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Board()
    Slot(made, 0).show(Shown([session(1)], []))
    monkeypatch.setattr(board, "SHOWN_FOR", 0.0)
    assert made.read([0]) == []


def test_without_memory_nothing_is_shown() -> None:
    made = Board()
    os.close(made._file)
    made._file = -1
    Slot(made, 0).show(Shown([session(1)], []))
    assert made.read([0]) == []


def test_all_threads_together() -> None:
    one = Shown([session(1, 5.0), session(2, 500.0)], [slow(0.1), slow(7.0)])
    two = Shown([session(3, 50.0)], [slow(3.0)])
    told = telling.sessions([one, two])
    assert [each["seconds"] for each in told["sessions"]] == [500.0, 50.0, 5.0]
    assert [each["delay"] for each in told["slowest"]] == [7.0, 3.0, 0.1]
    assert telling.sessions([]) == {"sessions": [], "slowest": []}
