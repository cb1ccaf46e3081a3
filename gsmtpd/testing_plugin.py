"""Which fixtures does gsmtpd give to pytest? Loaded by each pytest, so it imports nothing early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gsmtpd.testing import TestServer


@pytest.fixture
def gsmtpd_server() -> Iterator[TestServer]:
    """A mail server for this test alone, on a free port, that takes mail for anybody."""
    from gsmtpd.testing import TestServer

    with TestServer() as server:
        yield server
