"""What happens to mail while somebody else locks its table? It waits; no half of it is stored.

All waits run at once, beside the other tests of this directory; see conftest.py.
"""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from tests.faults.locks import CASES, Waited


@pytest.mark.parametrize("name", CASES)
def test_mail_waits_for_a_lock_or_comes_again(waits: dict[str, Future[Waited]], name: str) -> None:
    ledger, during, after = waits[name].result()
    assert not during, "stored by halves"
    codes = [attempt.reply.code for attempt in ledger.attempts if attempt.reply]
    assert codes == [CASES[name].code, 250]
    ledger.check(after)
    assert ledger.duplicates(after) == 0
