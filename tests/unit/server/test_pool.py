"""Does an SMTP thread leave alone what it has put aside?"""

from __future__ import annotations

import errno
import socket
from typing import cast

from gsmtpd.maillog import MailLog
from gsmtpd.metrics import Counter, Counters, Overload
from gsmtpd.server.pool import SMTPThread
from gsmtpd.server.tcp import SMTPServer


class WithoutDescriptors:
    """A server that can accept nobody, as the system gives no descriptor."""

    listening = True

    def __init__(self, listener: socket.socket) -> None:
        self.fileno = listener.fileno
        self.asked = 0

    def accept_waiting(self) -> bool:
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")

    def accepted_by_one_more(self) -> None:
        pass

    def service_actions(self) -> None:
        pass


def test_a_listener_is_put_aside_once_though_a_sweep_comes_in_the_middle_of_a_round() -> None:
    """The sweep and the event that came before it both want to accept."""
    counters = Counters()
    thread = SMTPThread("smtp-1", counters.row(counters.take(1)[0]), MailLog(lambda text: None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = WithoutDescriptors(listener)
        thread.serve([cast(SMTPServer, server)])
        thread._sweep()
        thread._accept(listener.fileno())
        assert server.asked == 1
        assert counters.any(Counter.OVERLOAD) == Overload.DESCRIPTORS
        thread.now += 10
        thread._sweep()  # it is time to try again
        assert server.asked == 2
    thread.close()
