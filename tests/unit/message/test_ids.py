"""Is an id never given out twice?"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from gsmtpd.message.ids import id_maker


def test_an_id_is_32_hexadecimal_digits() -> None:
    # It fits the column `hash`, char(32).
    make = id_maker(1_700_000_000.5)
    assert all(re.fullmatch("[0-9a-f]{32}", make()) for _ in range(100))


def test_it_begins_with_the_time_of_its_maker() -> None:
    assert int(id_maker(1_700_000_000.5)()[:11], 16) == 1_700_000_000_500


def test_a_maker_counts() -> None:
    make = id_maker(0.0)
    first, second = make(), make()
    assert first[:23] == second[:23]
    assert [int(each[23:], 16) for each in (first, second, make())] == [0, 1, 2]


def test_makers_of_one_moment_differ() -> None:
    assert len({id_maker(1_700_000_000.0)() for _ in range(1000)}) == 1000


def test_threads_may_share_a_maker() -> None:
    make = id_maker(1.0)
    with ThreadPoolExecutor(4) as pool:
        made = [
            one
            for some in pool.map(lambda _: [make() for _ in range(5000)], range(4))
            for one in some
        ]
    assert len(set(made)) == 20000


def test_the_time_never_breaks_the_form() -> None:
    for now in (0.0, -1.0, 2.0**35, 1e15):
        assert re.fullmatch("[0-9a-f]{32}", id_maker(now)())
