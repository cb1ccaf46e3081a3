"""Are the connections of an address counted over all processes, and never too few?"""

from __future__ import annotations

import os
from collections import Counter
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.policy.crowd import Crowd, Seat


def a_seat(crowd: Crowd | None = None) -> Seat:
    """A seat that has been taken."""
    crowd = crowd or Crowd(8)
    return crowd.seat(crowd.take())


def test_those_that_are_there_are_counted() -> None:
    seat = a_seat()
    assert seat.count("192.0.2.1") == 0
    assert [seat.enter("192.0.2.1") for _ in range(3)] == [1, 2, 3]
    seat.leave("192.0.2.1")
    assert seat.count("192.0.2.1") == 2
    assert seat.enter("192.0.2.1") == 3


def test_over_all_seats() -> None:
    crowd = Crowd(4)
    seats = [a_seat(crowd) for _ in range(4)]
    assert [seat.enter("192.0.2.1") for seat in seats] == [1, 2, 3, 4]
    assert {seat.count("192.0.2.1") for seat in seats} == {4}
    seats[0].leave("192.0.2.1")
    assert seats[3].count("192.0.2.1") == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "::FFFF:c000:201", True),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:DB8:0:0:ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "127.0.0.1", False),
        ("::192.0.2.1", "192.0.2.1", False),
        ("unknown", "unknown", True),
        ("no:address", "no:address", True),
        ("no:address", "no:other", False),
    ],
)
def test_who_is_the_same(one: str, other: str, same: bool) -> None:
    crowd = Crowd(1)
    assert (crowd.places(one) == crowd.places(other)) == same
    seat = a_seat(crowd)
    seat.enter(one)
    assert seat.enter(other) == (2 if same else 1)


# So few that two of them hardly ever share their cells.
IPS = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:1::1", "::1"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), IPS, st.booleans()), max_size=60))
def test_a_count_is_never_too_low(steps: list[tuple[int, str, bool]]) -> None:
    crowd = Crowd(3)
    seats = [a_seat(crowd) for _ in range(3)]
    there: Counter[tuple[int, str]] = Counter()
    for number, ip, comes in steps:
        if comes:
            there[number, ip] += 1
            assert seats[number].enter(ip) >= sum(there[n, ip] for n in range(3))
        elif there[number, ip]:
            there[number, ip] -= 1
            seats[number].leave(ip)
    for ip in {ip for _, ip in there}:
        assert seats[0].count(ip) >= sum(there[n, ip] for n in range(3))
    for (number, ip), times in there.items():
        for _ in range(times):
            seats[number].leave(ip)
    assert all(seats[0].count(ip) == 0 for _, ip in there)


def test_ten_thousand_others_hardly_count() -> None:
    seat = a_seat()
    for number in range(10_000):
        seat.enter(f"10.{number >> 8}.{number & 255}.1")
    # The mean of a cell is 1.2; that both of one have 20 is beyond all chance.
    assert max(seat.count(f"192.0.2.{n}") for n in range(256)) < 20


def test_where_an_address_is_counted_nobody_can_tell() -> None:
    assert len({Crowd(1).places("192.0.2.1") for _ in range(20)}) > 10


def test_the_two_cells_are_independent() -> None:
    """With one hash for both, who meets in one row would meet in the other one."""
    crowd = Crowd(1)
    places = [crowd.places(f"10.{n >> 8}.{n & 255}.1") for n in range(30_000)]
    ones, others = {one for one, _ in places}, {other for _, other in places}
    assert not ones & others
    assert len(ones) > 7500 < len(others)  # of 8192, which all are to be used
    assert len(set(places)) > 29_900


def test_cells_do_not_wrap() -> None:
    seat = a_seat()
    for _ in range(65_535):
        seat.enter("192.0.2.1")
    assert seat.enter("192.0.2.1") == seat.enter("192.0.2.1") == 65_535
    for _ in range(65_540):
        seat.leave("192.0.2.1")
    assert seat.count("192.0.2.1") == 0
    assert seat.enter("192.0.2.1") == 1


def test_a_sum_is_wider_than_a_cell() -> None:
    crowd = Crowd(2)
    one, other = a_seat(crowd), a_seat(crowd)
    for _ in range(40_000):
        one.enter("192.0.2.1")
        other.enter("192.0.2.1")
    assert one.count("192.0.2.1") == 80_000


def test_what_the_gone_had_counts_no_more() -> None:
    crowd = Crowd(3)
    numbers = [crowd.take() for _ in range(3)]
    seats = [crowd.seat(number) for number in numbers]
    for seat in seats:
        seat.enter("192.0.2.1")
    crowd.give_back(numbers[1])
    assert seats[0].count("192.0.2.1") == 2
    assert crowd.take() == numbers[1]
    assert crowd.seat(numbers[1]).enter("192.0.2.1") == 3
    for number in numbers:
        crowd.give_back(number)
    assert crowd.seat(crowd.take()).enter("192.0.2.1") == 1


def test_there_is_an_end_of_seats() -> None:
    crowd = Crowd(2)
    assert {crowd.take(), crowd.take()} == {0, 1}
    with pytest.raises(MemoryError, match="2 processes"):
        crowd.take()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_see_one_another() -> None:
    """Also one that was forked before the other's seat was taken."""
    crowd = Crowd(4)
    first = crowd.seat(crowd.take())
    ready, tell = os.pipe()
    early = os.fork()
    if early == 0:
        os.read(ready, 1)  # until the second one has counted
        os._exit(first.enter("192.0.2.1"))
    number = crowd.take()
    late = os.fork()
    if late == 0:
        seat = crowd.seat(number)
        seat.enter("192.0.2.1")
        os._exit(seat.enter("192.0.2.1"))
    assert os.waitstatus_to_exitcode(os.waitpid(late, 0)[1]) == 2
    os.write(tell, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(early, 0)[1]) == 3
    crowd.give_back(number)
    assert first.count("192.0.2.1") == 1


def test_threads_share_a_seat() -> None:
    seat = a_seat()

    def come_and_go() -> None:
        for _ in range(3000):
            seat.enter("192.0.2.1")
            seat.enter("2001:db8::1")
            seat.leave("192.0.2.1")

    threads = [Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seat.count("192.0.2.1"), seat.count("2001:db8::1")) == (0, 12_000)
