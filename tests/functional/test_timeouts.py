"""Who keeps the server waiting hears 421, and nobody else does. All of them wait at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.accounting import Address, Client, Gone, Reply, stuffed, with_token
from tests.servers import Gsmtpd

TIMEOUT = 5.0  # seconds, as configured below
SESSION = 20.0
PAUSE = 1.5  # of a client that is slow, and may be as late again and more on a busy machine


def silent(client: Client) -> Reply:
    """Says nothing at all."""
    client.reply()
    return client.reply()


def silent_between_commands(client: Client) -> Reply:
    client.hello()
    return client.reply()


def silent_in_a_command(client: Client) -> Reply:
    client.hello()
    client.send(b"MAIL FROM:<a@exam")
    return client.reply()


def drips_a_command(client: Client) -> Reply:
    """Sends an octet now and then: a command must be whole in time."""
    client.hello()
    client.socket.settimeout(0.2)
    for octet in b"NOOP " + b"x" * 400:
        client.send(bytes([octet]))
        try:
            said = client.socket.recv(512).decode().rstrip()
        except TimeoutError:
            continue
        return Reply(int(said[:3]), said)
    return Reply(0, "was never timed out")


def silent_in_its_message(client: Client) -> Reply:
    client.hello().begin(with_token())
    client.send(b"Subject: x\r\n")
    return client.reply()


def never_ends(client: Client) -> Reply:
    """Is polite, and stays: its session is too long."""
    began = time.monotonic()
    client.hello()
    while (reply := client.command("NOOP")).code == 250:
        time.sleep(0.3)  # a hundred commands that lead nowhere are too many
    assert time.monotonic() - began > SESSION - 1
    return reply


def works_slowly(client: Client) -> Reply:
    """Is slower than the timeout on the whole, but never silent for that long."""
    mail = with_token()
    client.hello()
    for _ in range(4):
        time.sleep(PAUSE)
        assert client.command("NOOP").code == 250
    assert client.begin(mail).code == 354
    wire = stuffed(mail.content)
    for start in range(0, len(wire), 50):
        time.sleep(PAUSE / 2)
        client.send(wire[start : start + 50])
    return client.reply()


CASES: dict[Callable[[Client], Reply], str] = {
    silent: "421 4.4.2 Timed out ",
    silent_between_commands: "421 4.4.2 Timed out ",
    silent_in_a_command: "421 4.4.2 Timed out ",
    drips_a_command: "421 4.4.2 Timed out ",
    silent_in_its_message: "421 4.4.2 Timed out ",
    never_ends: "421 4.4.2 Session ",
    works_slowly: "250 2.0.0 ",
}
Talks = dict[str, Future[Reply]]


def talk(address: Address, case: Callable[[Client], Reply]) -> Reply:
    """One client; who hears 421 is hung up on, though it stays."""
    with Client(address) as client:
        reply = case(client)
        client.socket.settimeout(30)
        if reply.code == 421:
            while not client.closed():
                pass
        return reply


@pytest.fixture(scope="module")
def talks(background: ThreadPoolExecutor) -> Iterator[Talks]:
    """All clients, under way."""
    settings = {"limits": {"timeout": f"{TIMEOUT:g}s", "session_timeout": f"{SESSION:g}s"}}
    with Gsmtpd(settings) as server:
        yield {case.__name__: background.submit(talk, server.address, case) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_client(talks: Talks, case: Callable[[Client], Reply]) -> None:
    try:
        reply = talks[case.__name__].result()
    except Gone as gone:
        pytest.fail(f"hung up on without a word: {gone}")
    assert reply.text.startswith(CASES[case])
