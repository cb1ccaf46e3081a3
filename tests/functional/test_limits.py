"""What happens at the limits: too many clients, no descriptors, a client that will not read?"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.accounting import Client, Gone, count, rows, send, table_of, with_token
from tests.servers import Gsmtpd, free_port, wait_for

FREE_AGAIN = 10.0  # seconds until clients that found no descriptor are served; 2 when at rest


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """As many open files as the system gives: the clients are ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def clients(server: Gsmtpd, number: int) -> Iterator[list[Client]]:
    """So many clients, one after the other, that nobody has read the greeting of."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(server.address)) for _ in range(number)]


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


# --- too many clients ---------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 3])
def test_one_client_too_many_hears_421_at_once(processes: int) -> None:
    settings = {"server": {"processes": processes}, "limits": {"max_clients": 10}}
    with Gsmtpd(settings) as server:
        with contextlib.ExitStack() as stack:
            inside = [stack.enter_context(enter(server)) for _ in range(10)]
            for _ in range(5):
                with Client(server.address) as late:
                    assert late.reply().text.startswith("421 4.3.2 ")
                    assert late.closed()
            assert inside[0].deliver(with_token()).code == 250
            inside[0].close()
            assert stack.enter_context(enter(server)).deliver(with_token()).code == 250
        log = server.log.read_text()
        assert 1 <= log.count("max_clients = 10 reached") <= 2 * processes


def enter(server: Gsmtpd) -> Client:
    """A greeted client. Those before it may only just have hung up, so it may knock again."""
    for _ in range(100):
        client = Client(server.address)
        with contextlib.suppress(Gone):
            return client.hello()
        client.close()
        time.sleep(0.05)
    raise AssertionError("nobody is let in")


def test_a_burst_of_clients_is_answered_and_never_met_with_silence() -> None:
    settings = {"server": {"processes": 2}, "limits": {"max_clients": 50}}
    with Gsmtpd(settings) as server, clients(server, 400) as burst:
        codes = [client.reply().code for client in burst]
        assert set(codes) == {220, 421}
        # Each worker may take the last free place at the same moment.
        assert 50 <= codes.count(220) <= 51


# --- no descriptors -----------------------------------------------------------------------------


def test_without_descriptors_it_waits_and_does_not_spin() -> None:
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))"
    with Gsmtpd(before=few) as server:
        with Client(server.address) as witness, clients(server, 100) as waiting:
            witness.hello()
            wait_for(lambda: "cannot accept clients now" in server.log.read_text())
            inside = [client for client in waiting if greeted(client)]
            outside = [client for client in waiting if client not in inside]
            assert 20 < len(inside) < 60
            before = cpu_seconds(server.pids())
            time.sleep(1.2)
            assert cpu_seconds(server.pids()) - before < 0.2
            # Those who are in are served meanwhile, though the store may lack descriptors too.
            assert witness.deliver(with_token()).code in (250, 451, 452)
            for client in inside:
                client.close()
            began = time.monotonic()
            for client in outside[:20]:
                assert client.reply().code == 220
            assert time.monotonic() - began < FREE_AGAIN
        wait_for(lambda: send(server.address, with_token())[0].code == 250)


def greeted(client: Client) -> bool:
    """Whether a greeting has come; reads nothing."""
    client.socket.setblocking(False)
    try:
        return client.socket.recv(3, socket.MSG_PEEK) == b"220"
    except BlockingIOError:
        return False
    finally:
        client.socket.settimeout(60)


# --- a client that will not read ----------------------------------------------------------------


def test_a_client_that_never_reads_its_replies() -> None:
    """It is held back, it costs others nothing, and in the end it is hung up on."""
    soon = "import gsmtpd.server.client; gsmtpd.server.client.READ_WITHIN = 5.0"
    with Gsmtpd(before=soon) as server:
        (worker,) = server.workers
        before = resident(worker)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(server.address)
            assert deaf.recv(200).startswith(b"220 ")
            deaf.sendall(b"EHLO client.example\r\nMAIL FROM:<a@example.org>\r\n")
            # Recipients over the limit are answered one by one, and are no error.
            deaf.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    deaf.sendall(b"RCPT TO:<b@example.com>\r\n" * 1000)
            assert send(server.address, with_token())[0].code == 250
            assert resident(worker) - before < 8 * 1024 * 1024
            wait_for(lambda: hung_up(deaf))
        assert send(server.address, with_token())[0].code == 250


def resident(pid: int) -> int:
    """Octets of resident memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hung_up(client: socket.socket) -> bool:
    """Whether the connection was reset, or closed behind all that is there to be read."""
    try:
        client.send(b"x")
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


# --- listeners ----------------------------------------------------------------------------------


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_ipv4_and_ipv6_and_several_listeners_at_once() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    one, two, three = free_port(), free_port(), free_port()
    listen = {
        "mx": {"address": f"127.0.0.1:{one}, [::1]:{one}"},
        "second": {"address": f"127.0.0.1:{two}"},
        "third": {"address": f"[::1]:{three}"},
    }
    server = Gsmtpd({"server": {"processes": 2}, "listen": listen})
    server.port = one
    with server:
        for address in (("127.0.0.1", one), ("::1", one), ("127.0.0.1", two), ("::1", three)):
            assert send(address, with_token())[0].code == 250
        table = table_of(server)
        stored = [(row.front, ip) for row, (ip,) in zip(rows(table), ips(table), strict=True)]
    assert [ip for _, ip in stored] == ["127.0.0.1", "::1", "127.0.0.1", "::1"]
    assert [b"[IPv6:::1]" in front for front, _ in stored] == [False, True, False, True]


ips: Callable[..., list[tuple[str]]] = lambda table: table.query(  # noqa: E731
    "SELECT ip_addr FROM new_mail ORDER BY mail_id"
)


# --- size ---------------------------------------------------------------------------------------


def test_a_message_over_the_limit_costs_no_memory_and_no_session() -> None:
    with Gsmtpd({"limits": {"max_size": "64K"}}) as server, Client(server.address) as client:
        (worker,) = server.workers
        client.hello()
        before = resident(worker)
        assert client.begin(with_token()).code == 354
        for _ in range(640):
            client.send(b"x" * 102_400)
        client.send(b"\r\n.\r\n")
        assert client.reply().text.startswith("552 5.3.4 ")
        assert resident(worker) - before < 4 * 1024 * 1024
        assert client.deliver(with_token(65536)).code == 250
        assert client.deliver(with_token(65537)).code == 552
        assert count(table_of(server)) == 1
