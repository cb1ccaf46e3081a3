"""What does an SMTP thread do in which order, and what does it leave alone?"""

from __future__ import annotations

import errno
import socket
from typing import cast

import pytest

from gsmtpd.maillog import MailLog
from gsmtpd.message.row import Message
from gsmtpd.metrics import Counter, Counters, Overload
from gsmtpd.server.client import Client
from gsmtpd.server.pool import LOOK_UP, SMTPThread
from gsmtpd.server.tcp import SMTPServer
from gsmtpd.smtp import reply
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.reply import Reply
from gsmtpd.storage.job import Job
from gsmtpd.storage.writer import GroupCommitWriter
from tests.servers import wait_for


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


def a_thread(counters: Counters) -> SMTPThread:
    return SMTPThread("smtp-1", counters.row(counters.take(1)[0]), MailLog(lambda text: None))


def test_a_listener_is_put_aside_once_though_a_sweep_comes_in_the_middle_of_a_round() -> None:
    """The sweep and the event that came before it both want to accept."""
    counters = Counters()
    thread = a_thread(counters)
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


class Talker:
    """A client whose every octet is a whole message for `writer`."""

    client_ip = "192.0.2.1"

    def __init__(self, thread: SMTPThread, writer: GroupCommitWriter) -> None:
        self.ours, self.socket = socket.socketpair()
        self.interest = 0
        self.heard: list[Reply] = []
        self._thread = thread
        self._writer = writer
        thread.adopt(cast(Client, self))

    def readable(self) -> None:
        self.socket.recv(1)
        message = Message("m", Envelope("h", True, None, ()), b"", self.client_ip, 0.0)
        self._thread.store(self._writer, Job(message, self._thread, self, 0.0))

    def end(self, farewell: Reply) -> None:
        self.heard.append(farewell)

    def check_time(self, now: float) -> None:
        pass

    def close(self) -> None:
        self._thread.forget(cast(Client, self))
        self.socket.close()
        self.ours.close()


class Takes:
    """A writer that notes how many messages it is given at once, and has a fault if it is to."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.fault: Exception | None = None

    def submit(self, *jobs: Job) -> None:
        self.given.append(len(jobs))
        if self.fault is not None:
            raise self.fault


def test_messages_of_a_round_are_handed_over_together() -> None:
    """But not more than LOOK_UP of them, lest the first wait for all the others."""
    thread, writer = a_thread(Counters()), Takes()
    talkers = [Talker(thread, cast(GroupCommitWriter, writer)) for _ in range(LOOK_UP + 10)]
    for talker in talkers:
        talker.ours.send(b"x")
    thread.start()
    wait_for(lambda: sum(writer.given) == len(talkers))
    thread.stop()
    thread.join()
    thread.close()
    assert writer.given == [LOOK_UP, 10]


def test_a_writer_that_fails_ends_the_sessions_and_not_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thread, writer = a_thread(Counters()), Takes()
    talkers = [Talker(thread, cast(GroupCommitWriter, writer)) for _ in range(2)]
    writer.fault = RuntimeError("a fault of ours")
    for talker in talkers:
        talker.ours.send(b"x")
    thread.start()
    wait_for(lambda: all(talker.heard for talker in talkers))
    writer.fault = None
    talkers[0].ours.send(b"x")
    wait_for(lambda: writer.given == [2, 1])
    thread.stop()
    thread.join()
    thread.close()
    assert [talker.heard for talker in talkers] == [[reply.INTERNAL_ERROR]] * 2
    assert "fault in the session of 192.0.2.1" in caplog.text
