"""Does the log ever stand in the way of mail, and does mail ever lie open to others?"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

from tests.accounting import send, with_token
from tests.functional.test_daemon import Daemon
from tests.servers import Gsmtpd, environment, wait_for


def mail_goes_in(server: Gsmtpd) -> bool:
    return send(server.address, with_token())[0].code == 250


def test_a_log_that_was_renamed_is_made_anew() -> None:
    with Gsmtpd() as server:
        assert mail_goes_in(server)
        server.log.rename(server.path / "old.log")
        time.sleep(1.1)  # it is looked at once a second
        assert mail_goes_in(server)
        wait_for(lambda: server.log.exists() and "event=accepted" in server.log.read_text())


def test_a_reader_of_stderr_that_does_not_read_stops_no_mail() -> None:
    server = Gsmtpd()
    text = server.conf.read_text()
    server.conf.write_text("\n".join(x for x in text.splitlines() if "gsmtpd.log" not in x))
    command = [sys.executable, "-m", "gsmtpd", "-n", "-c", str(server.conf)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        try:
            wait_for(server.answers)
            # Each line has some 200 octets, and a pipe takes 64 KiB.
            mails = [with_token() for _ in range(800)]
            assert {reply.code for reply in send(server.address, *mails)} == {250}
        finally:
            process.terminate()
            process.communicate()
        server.close()


def test_signals_that_ask_for_what_is_to_come_end_nothing() -> None:
    with Daemon() as server:
        workers = server.workers
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            for pid in (server.pid, *workers):
                os.kill(pid, number)
        time.sleep(0.3)
        assert mail_goes_in(server)
        assert server.workers == workers


def test_mail_and_log_are_not_for_everybody_to_read() -> None:
    with Gsmtpd() as server:
        assert mail_goes_in(server)
        kept = [path for path in server.path.iterdir() if path.name.startswith("mail.db")]
        assert kept
        for path in [*kept, server.log]:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path
