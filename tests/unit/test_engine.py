"""Is a worker that retires deaf from the moment it says so?"""

from __future__ import annotations

import socket

import pytest

from gsmtpd import app
from gsmtpd.app_policy import make_policy
from gsmtpd.config import load
from gsmtpd.logs import Logs
from gsmtpd.metrics import Counters
from gsmtpd.policy.crowd import Crowd
from gsmtpd.server.listeners import open_listeners
from tests.servers import Gsmtpd


def test_who_has_retired_accepts_nobody() -> None:
    """The master answers `gsmtpctl reload` then: the next client must not get the old settings."""
    files = Gsmtpd({"store": {"backend": "null"}})
    config = load(str(files.conf))
    for _ in range(10):
        counters = Counters()
        listeners = open_listeners(app.wanted(config))
        logs = Logs(str(files.log), "error", "logfmt")
        share = app.Share(counters, counters.take(1), Crowd(1).seat(0))
        policy = make_policy(config)
        engine = app.make_engine(config, listeners, policy, None, share, logs, True)
        engine.start()
        with socket.create_connection(files.address) as client:
            assert client.recv(4) == b"220 "
        engine.retire()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(files.address)
        engine.stop()
        logs.close()
    files.close()
