"""Are those who ask the store answered, or told that they are not, where it hangs?"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from gsmtpd.status import readers
from gsmtpd.status.readers import Readers
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from tests.mailtable import MailTable


@pytest.fixture
def asking(tmp_path: Path) -> Readers:
    return Readers(MailTable(tmp_path / "mail.db").finder, 2)


def test_who_gets_no_turn_is_told(asking: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TURN_WITHIN", 0.2)
    over = threading.Event()
    asked: list[str] = []

    def hang(_: Finder) -> str:
        over.wait(30)
        return "late"

    async def ask() -> None:
        hanging = [asyncio.ensure_future(asking.ask(hang)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="no turn within"):
            await asking.ask(lambda _: asked.append("without a turn"))
        leaving = asyncio.ensure_future(asking.ask(lambda _: asked.append("gone")))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        over.set()
        assert await asyncio.gather(*hanging) == ["late"] * 2  # they have begun
        await asking.ask(lambda _: asked.append("well again"))

    asyncio.run(ask())
    asking.close()
    assert asked == ["well again"]
