"""Are the counters counted by each thread alone, and summed over processes?"""

from __future__ import annotations

import os

import pytest

from gsmtpd.metrics import BATCH_ROWS, BITS, CELLS, COMMIT, Counter, Counters, Overload, Reason


def test_all_begin_at_zero() -> None:
    counters = Counters(3)
    assert [counters.total(counter) for counter in Counter] == [0] * len(Counter)


def test_a_row_is_its_own() -> None:
    counters = Counters(4)
    counters.take(2)
    for number in range(3):
        row = counters.row(number)
        assert len(row) == CELLS
        for counter in Counter:
            row[counter] += 10**number * (counter + 1)
    for counter in Counter:
        assert counters.total(counter) == 111 * (counter + 1)
        assert [counters.row(n)[counter] for n in range(3)] == [
            10**n * (counter + 1) for n in range(3)
        ]


def test_counters_are_wide() -> None:
    counters = Counters(2)
    counters.take(1)
    counters.row(0)[Counter.RECEIVED_BYTES] = 2**62
    counters.row(1)[Counter.RECEIVED_BYTES] = 2**62
    assert counters.total(Counter.RECEIVED_BYTES) == 2**63


def test_the_numbers_of_the_counters_stay() -> None:
    # gsmtpctl may be older or newer than the server it asks.
    assert [counter.name for counter in sorted(Counter)][:10] == [
        *("CLIENTS", "ACCEPTED", "REFUSED", "RECEIVED_BYTES", "TURNED_AWAY", "BEATS"),
        *("DISCARDED", "DENIED", "CROWDED", "OVERLOAD"),
    ]
    assert sorted(Counter) == [*range(len(Counter))]


def test_what_the_gone_have_counted_stays_and_their_clients_do_not() -> None:
    counters = Counters(4)
    first, second = counters.take(1), counters.take(2)
    assert [*first, *second] == [1, 2, 3]
    for number in (*first, *second):
        counters.row(number)[Counter.CLIENTS] = 5
        counters.row(number)[Counter.ACCEPTED] = 7
        counters.row(number)[Counter.DENIED] = counters.row(number)[Counter.CROWDED] = 2
        counters.row(number)[Counter.OVERLOAD] = Overload.MEMORY
    counters.row(second[1])[Counter.OVERLOAD] = Overload.MEMORY | Overload.CLIENTS
    counters.give_back(second)
    assert counters.total(Counter.CLIENTS) == 5
    assert counters.total(Counter.ACCEPTED) == 21
    assert counters.total(Counter.DENIED) == counters.total(Counter.CROWDED) == 6
    assert counters.any(Counter.OVERLOAD) == Overload.MEMORY
    counters.give_back(first)
    assert counters.any(Counter.OVERLOAD) == 0
    assert counters.total(Counter.CLIENTS) == 0


def test_overload_is_what_any_thread_says() -> None:
    counters = Counters(4)
    rows = counters.take(3)
    assert counters.any(Counter.OVERLOAD) == 0
    for number, what in zip(rows, (Overload.CLIENTS, Overload.DESCRIPTORS, 0), strict=True):
        counters.row(number)[Counter.OVERLOAD] = what
    counters.row(0)[Counter.OVERLOAD] = Overload.CLIENTS
    overload = Overload(counters.any(Counter.OVERLOAD))
    assert overload == Overload.CLIENTS | Overload.DESCRIPTORS
    assert overload.words == ["max_clients", "file descriptors"]


@pytest.mark.parametrize("overload", Overload)
def test_each_overload_has_a_word(overload: Overload) -> None:
    assert overload.words
    assert all(overload.words)
    assert Overload(0).words == []


def test_rows_are_used_again_and_begin_at_zero() -> None:
    counters = Counters(6)
    one, two, three = (counters.take(1) for _ in range(3))
    counters.row(two[0])[Counter.BEATS] = 3
    counters.give_back(two)
    assert counters.take(1) == two
    assert [*counters.row(two[0])] == [0] * CELLS
    counters.give_back(one)
    assert counters.take(2) == range(4, 6)  # one row of two would have been the second's
    with pytest.raises(MemoryError):
        counters.take(2)
    assert three == range(3, 4)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_counts_for_its_master() -> None:
    counters = Counters(2)
    counters.take(1)
    pid = os.fork()
    if pid == 0:
        counters.row(1)[Counter.ACCEPTED] += 3
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert counters.total(Counter.ACCEPTED) == 3
    assert counters.row(0)[Counter.ACCEPTED] == 0


def test_every_cell_has_one_meaning() -> None:
    assert [*Counter, *Reason] == [*range(len(Counter) + len(Reason))]
    assert COMMIT.first == len(Counter) + len(Reason)
    assert (COMMIT.sum + 1, BATCH_ROWS.sum + 1) == (BATCH_ROWS.first, CELLS)
    assert [reason.word for reason in Reason][:3] == ["relay", "no_such_user", "not_yet"]


def test_totals_are_those_of_the_gone_as_well() -> None:
    counters = Counters(4)
    first, second = counters.take(1), counters.take(1)
    for (number,) in (first, second):
        row = counters.row(number)
        for cell in range(CELLS):
            row[cell] = 3
    counters.row(first[0])[Counter.OVERLOAD] = Overload.CLIENTS
    totals = counters.totals()
    assert totals == [6 if cell not in BITS else 3 for cell in range(CELLS)]
    assert totals == [
        counters.any(Counter(cell)) if cell in BITS else counters.total(cell)
        for cell in range(CELLS)
    ]
    counters.give_back(second)
    of_now = (Counter.CLIENTS, Counter.BEATS, Counter.MEMORY, Counter.QUEUE)
    expected = [3 if cell in of_now else 6 for cell in range(CELLS)]
    expected[Counter.OVERLOAD], expected[Counter.HOSTS_AWAY] = Overload.CLIENTS, 3
    assert counters.totals() == expected
