"""Is the last hour kept, and read right whatever is being written?"""

from __future__ import annotations

import os

import pytest

from gsmtpd import rates, telling
from gsmtpd.history import History, Sample
from gsmtpd.metrics import BATCH_ROWS, CELLS, COMMIT, Counter, Counters, Reason, StoreMeter


def cells(**values: int) -> list[int]:
    """Totals that are 0 but for `values`, by the names of counters."""
    made = [0] * CELLS
    for name, value in values.items():
        made[Counter[name.upper()]] = value
    return made


def accepted(samples: list[Sample]) -> list[int]:
    """What is numbered in `samples`."""
    return [sample.cells[Counter.ACCEPTED] for sample in samples]


def filled(count: int, kept: int = 20) -> History:
    """A history of so many samples, which are numbered by ACCEPTED."""
    history = History(kept)
    for number in range(count):
        history.add(cells(accepted=number))
    return history


def test_nothing_at_first() -> None:
    history = History(10)
    assert (history.latest(), history.since(10), history.ends(10)) == (None, [], [])


def test_each_step_and_the_one_before() -> None:
    history = filled(10)
    assert accepted(history.since(3)) == [6, 7, 8, 9]
    assert accepted(history.since(100)) == [*range(10)]
    assert accepted(history.since(4, 2)) == [4, 6, 8]
    assert accepted(history.since(3, 2)) == [4, 6, 8]
    history.add(cells(accepted=10))
    assert accepted(history.since(4, 2)) == [6, 8, 10]  # and none of those that were not chosen


def test_the_two_ends() -> None:
    assert accepted(filled(1).ends(5)) == [0]
    assert accepted(filled(10).ends(5)) == [4, 9]
    assert accepted(filled(10).ends(500)) == [0, 9]
    assert accepted(filled(1000).ends(500)) == [981, 999]


def test_the_oldest_are_forgotten() -> None:
    history = filled(1000)
    assert accepted(history.since(3600)) == [*range(980, 1000)]
    assert accepted(history.since(3600, 7)) == [980, 987, 994]
    latest = history.latest()
    assert latest is not None
    assert accepted([latest]) == [999]


@pytest.mark.parametrize("at", [0, -1])
def test_what_is_being_overwritten_is_left_out(at: int) -> None:
    history = filled(25)
    history._slot(25)[at] = 25 if at else -1  # as it is while number 25 takes the place of 5
    assert accepted(history.since(3600)) == [*range(6, 25)]
    history._slot(24)[at] = -1
    latest = history.latest()
    assert latest is not None
    assert accepted([latest]) == [23]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_what_its_master_writes() -> None:
    """All it reads are whole samples, in their order, while others take their places."""
    history = History(5)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b".")
        seen = 0
        while seen < 3000:
            read = history.since(5)
            seen = read[-1].cells[0] if read else 0
            whole = all(len({*sample.cells}) == 1 for sample in read)
            numbers = [sample.cells[0] for sample in read]
            if not whole or numbers != sorted({*numbers}):
                os._exit(1)
        os._exit(0)
    os.read(told, 1)  # it is at it
    for number in range(3001):
        history.add([number] * CELLS)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(told)
    os.close(tell)


# --- what is made of it ---------------------------------------------------------------------------


def sample(at: float, counters: Counters) -> Sample:
    return Sample(1000.0 + at, at, counters.totals())


def test_rates_are_per_second() -> None:
    counters = Counters(3)
    [row] = map(counters.row, counters.take(1))
    first = sample(0.0, counters)
    row[Counter.ACCEPTED] += 30
    row[Counter.RECEIVED_BYTES] += 5
    row[Counter.CLIENTS] = 7
    row[Reason.RELAY] += 3
    meter = StoreMeter(row)
    for seconds in (0.003, 0.003, 0.004, 0.2):
        meter.stored(7, seconds)
    meter.waits(9)
    second = sample(2.0, counters)
    [told] = rates.rows([first, second])
    named = dict(zip(rates.COLUMNS, told, strict=True))
    assert named["time"] == 1002.0
    assert (named["accepted"], named["received_bytes"], named["refused:relay"]) == (15, 2.5, 1.5)
    assert (named["clients"], named["queue"], named["refused"]) == (7, 9, 0)
    assert (named["commits"], named["commit_seconds"], named["batch_rows"]) == (2, 0.105, 14)
    assert 0.1 < named["commit_p95"] <= 0.25
    expected = dict.fromkeys(rates.per_second([]), 0) | {"accepted": 15, "received_bytes": 2.5}
    assert rates.per_second([first, second]) == expected | {"commits": 2}
    commit = rates.commits([first, second])
    assert commit["count"] == 4
    assert 0.0025 < commit["median"] <= 0.005
    assert 5 < commit["rows_median"] <= 10
    assert commit["rows_median"] == int(commit["rows_median"])
    assert commit["rows_mean"] == 7


def test_where_nothing_is_known_yet() -> None:
    one = Sample(0.0, 0.0, cells())
    assert rates.rows([one]) == rates.rows([]) == []
    for samples in ([], [one], [one, one._replace(at=1.0)]):
        assert {*rates.per_second(samples).values()} == {0}
        assert {*rates.commits(samples).values()} == {0, None}
    [row] = rates.rows([one, one._replace(at=1.0)])
    assert dict(zip(rates.COLUMNS, row, strict=True))["commit_p95"] is None


@pytest.mark.parametrize("about", ["x", "1 0", "0 1", "-5", "1 2 3", "3600 3601", "99999999999 1"])
def test_what_history_does_not_take(about: str) -> None:
    assert "SECONDS and STEP" in telling.history(filled(3), about)["error"]


@pytest.mark.parametrize(("about", "rows"), [("", 9), ("5", 5), ("6 3", 2), ("3600 10", 0)])
def test_what_history_tells(about: str, rows: int) -> None:
    told = telling.history(filled(10), about)
    assert len(told["rows"]) == rows
    assert {len(row) for row in told["rows"]} <= {len(told["columns"])}


# --- histograms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "bucket"), [(0, 0), (1000, 0), (1001, 1), (2500, 1), (10**7, 12), (10**7 + 1, 13)]
)
def test_a_value_is_in_the_bucket_whose_bound_it_does_not_exceed(value: int, bucket: int) -> None:
    row = Counters(2).row(1)
    COMMIT.note(row, value)
    counts = COMMIT.counts(row)
    assert [number for number, count in enumerate(counts) if count] == [bucket]
    assert row[COMMIT.sum] == value


def test_quantiles() -> None:
    counts = [0] * (len(BATCH_ROWS.bounds) + 1)
    assert BATCH_ROWS.quantile(counts, 0.5) is None
    counts[2] = 10  # 2 < value <= 5
    assert BATCH_ROWS.quantile(counts, 0.5) == 4  # there is no half a row
    assert BATCH_ROWS.quantile(counts, 1.0) == 5
    counts[0] = 90
    assert BATCH_ROWS.quantile(counts, 0.9) == 1
    assert BATCH_ROWS.quantile(counts, 0.95) == 4
    assert BATCH_ROWS.quantile(counts, 0.5) == 1
    counts[-1] = 1000
    assert BATCH_ROWS.quantile(counts, 0.95) == 1000
