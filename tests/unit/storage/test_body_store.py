"""Is what a body store says it holds there, and does it never hold up or mix up anything?"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.storage import body_store
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.body_store import BodyStore, open_body_store
from tests.servers import Memcached, Redis, free_port, freeze, wait_for

HOUR = 3600.0
NEVER = 1e9  # seconds
OCTETS = [
    b"",
    b"\r\n",
    b"\0",
    b"END\r\nSTORED\r\n+OK\r\n$-1\r\n",
    bytes(range(256)) * 17,
    b"x" * 700_000,
]

Server = Memcached | Redis


@pytest.fixture(params=[Memcached, Redis])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server of the test's own."""
    with request.param() as running:
        yield running


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets for how many seconds nothing is tried behind trouble."""
    return lambda seconds: monkeypatch.setattr(body_store, "PAUSE", seconds)


def backend(server: Server) -> str:
    return "redis" if isinstance(server, Redis) else "memcached"


def store_in(server: Server, ttl: float = HOUR) -> BodyStore:
    return open_body_store(backend(server), "127.0.0.1", server.port, None, ttl)


def keys(number: int) -> list[str]:
    """Keys like those of messages."""
    return [f"{random.getrandbits(128):032x}" for _ in range(number)]


def bodies(number: int, size: int) -> dict[str, bytes]:
    """Random octets; no two values are the same."""
    return {key: random.randbytes(size) for key in keys(number)}


def fill(store: BodyStore, size: int) -> dict[str, bytes]:
    """Put bodies until one is refused; those that the store says it holds."""
    held: dict[str, bytes] = {}
    for _ in range(1000):
        batch = bodies(20, size)
        said = store.put(batch)
        held |= {key: batch[key] for key in said}
        if said != {*batch}:
            return held
    raise AssertionError("it is never full")


def check(store: BodyStore, held: Mapping[str, bytes]) -> None:
    """It has what it says it holds."""
    for key, value in held.items():
        assert store.get(key) == value


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def halt(server: Server) -> None:
    """From now on it answers nothing, and takes what its sockets' buffers take."""
    freeze(server.pid)


def go_on(server: Server) -> None:
    os.kill(server.pid, signal.SIGCONT)


# --- Kept -----------------------------------------------------------------------------------------


def test_what_is_put_is_there(server: Server) -> None:
    store = store_in(server)
    values = dict(zip(keys(len(OCTETS)), OCTETS, strict=True))
    assert store.encoding == backend(server)
    assert store.put(values) == {*values}
    check(store, values)
    assert store.get("0" * 32) is None


def test_it_is_there_for_others(server: Server) -> None:
    batch = bodies(3, 100)
    store_in(server).put(batch)
    check(store_in(server), batch)


def test_the_newer_value_stays(server: Server) -> None:
    store = store_in(server)
    store.put({"key": b"older"})
    assert store.put({"key": b"newer"}) == {"key"}
    assert store.get("key") == b"newer"


def test_nothing_is_nothing(server: Server) -> None:
    assert store_in(server).put({}) == set()


def test_a_large_batch(server: Server) -> None:
    """Larger than what the sockets' buffers take."""
    store = store_in(server)
    batch = bodies(2500, 4096)
    assert store.put(batch) == {*batch}
    check(store, batch)


@pytest.mark.parametrize("listening", [Redis, lambda: Memcached(item_size="16m")])
def test_a_large_message(listening: Callable[[], Server]) -> None:
    with listening() as server:
        store = store_in(server)
        batch = bodies(1, 10_000_000) | bodies(1, 10)
        assert store.put(batch) == {*batch}
        check(store, batch)


@pytest.mark.parametrize("listening", [Redis, lambda: Memcached(unix_socket=True)])
def test_a_unix_socket(listening: Callable[[], Server]) -> None:
    with listening() as server:
        store = open_body_store(backend(server), "", None, str(server.socket), HOUR)
        batch = bodies(10, 4096) | bodies(1, 500_000)
        assert store.put(batch) == {*batch}
        check(store, batch)


def test_a_name_with_two_addresses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the server listens at the second, as memcached for localhost on Debian."""
    look_up = socket.getaddrinfo

    def both(_: str, *rest: Any, **more: Any) -> list[Any]:
        return [*look_up("127.0.0.2", *rest, **more), *look_up("127.0.0.1", *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    store = open_body_store(backend(server), "localhost", server.port, None, HOUR)
    assert store.put({"key": b"value"}) == {"key"}


def test_it_goes_when_its_time_is_over(server: Server) -> None:
    short, long = store_in(server, 1.0), store_in(server, 20.5)
    assert short.put({"short": b"value"}) == {"short"}
    assert long.put({"long": b"value"}) == {"long"}
    wait_for(lambda: short.get("short") is None)
    assert long.get("long") == b"value"


def test_thirty_days_are_no_date(server: Server) -> None:
    store = store_in(server, 30 * 86400)
    store.put({"key": b"value"})
    assert store.get("key") == b"value"


def sockets() -> set[str]:
    """Those that are open in this process."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(entry))
    return {name for name in found if name.startswith("socket:")}


def test_close_ends_the_connections(server: Server) -> None:
    before = sockets()
    store = store_in(server)
    store.put({"key": b"value"})
    [connection] = sockets() - before
    store.close()
    assert connection not in sockets()


def test_a_connection_is_used_again() -> None:
    with Memcached() as server:
        store = store_in(server)
        store.put({"key": b"value"})
        before = int(server.stats()["total_connections"])
        for _ in range(20):
            store.put({"key": b"value"})
            store.get("key")
        assert int(server.stats()["total_connections"]) == before + 1  # that of `stats`


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [("redis", "redis", "python3-redis"), ("memcached", "pymemcache", "python3-pymemcache")],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StoreError, match=rf"{package}.*gsmtpd\[{kind}\]"):
        open_body_store(kind, "localhost", None, None, HOUR)


# --- Trouble --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Memcached, Redis])
def test_down_at_the_start_and_later_there(
    kind: type[Server], pause: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    pause(0)
    server = kind()
    store = store_in(server)
    for _ in range(3):
        assert store.put({"key": b"value"}) == set()
    with server:
        for _ in range(3):
            assert store.put({"key": b"value"}) == {"key"}
        assert store.get("key") == b"value"
    name = f"{backend(server)} at 127.0.0.1:{server.port}"
    assert warnings(caplog) == [
        f"{name}: Connection refused; mail goes into the table until this is mended",
        f"{name}: mail is kept there again",
    ]


def test_a_restart_between_two_batches_is_no_trouble(
    server: Server, pause: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    pause(NEVER)
    store = store_in(server)
    for _ in range(2):
        batch = bodies(5, 4096)
        assert store.put(batch) == {*batch}
        check(store, batch)
        server.kill()
        server.start()
    assert warnings(caplog) == []


def test_behind_a_failure_nothing_is_tried_for_a_while(
    server: Server, pause: Callable[[float], None]
) -> None:
    store = store_in(server)
    store.put({"key": b"value"})
    server.kill()
    pause(NEVER)
    assert store.put({"key": b"value"}) == set()
    server.start()
    assert store.put({"other": b"value"}) == set()
    assert store.get("other") is None


def test_one_alone_tries_again(server: Server, pause: Callable[[float], None]) -> None:
    """While it does, and waits for its answer, the others wait for nothing."""
    store = store_in(server)
    pause(0)
    halt(server)
    assert store.put({"key": b"value"}) == set()
    trial = threading.Thread(target=store.put, args=({"trial": b"value"},))
    trial.start()
    wait_for(lambda: store._breaker._tries is not None)  # type: ignore[attr-defined]
    assert store.put({"other": b"value"}) == set()
    go_on(server)
    trial.join()
    assert store.get("other") is None


def test_a_success_begun_before_the_trouble_does_not_end_it(pause: Callable[[float], None]) -> None:
    pause(NEVER)
    breaker = body_store._Breaker("a store")
    assert breaker.allows()
    with ThreadPoolExecutor() as executor:
        executor.submit(breaker.trouble, "no answer in time").result()
    breaker.well()
    assert not breaker.allows()


def test_a_server_that_has_stopped_answering(
    server: Server, pause: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    pause(0)
    store = store_in(server)
    assert store.put({"before": b"value"}) == {"before"}
    halt(server)
    assert store.put(bodies(5, 4096)) == set()  # on the connection that was there
    assert store.put(bodies(5, 4096)) == set()  # and on a new one
    assert store.put(bodies(1, 20_000_000)) == set()  # which fills the buffers
    with pytest.raises(StoreError, match="no answer in time"):
        store.get("before")
    go_on(server)
    batch = bodies(5, 4096)
    wait_for(lambda: store.put(batch) == {*batch})
    check(store, batch | {"before": b"value"})
    first, last = warnings(caplog)
    assert "no answer in time" in first
    assert "again" in last


def test_a_late_answer_is_nobodys(server: Server, pause: Callable[[float], None]) -> None:
    """It says of one message that it is kept, while another is refused."""
    pause(0)
    store = store_in(server)
    store.put({"key": b"value"})
    halt(server)
    assert store.put({"late": b"value"}) == set()
    go_on(server)
    if isinstance(server, Redis):
        server.ask(f"REPLICAOF 127.0.0.1 {free_port()}")
    wait_for(lambda: store_in(server).get("late") is not None)
    assert store.put({"refused": b"x" * 2_000_000}) == set()


def test_what_cannot_be_read_is_said(server: Server) -> None:
    store = store_in(server)
    server.kill()
    with pytest.raises(StoreError, match=rf"{backend(server)} at .*{server.port}.* refused"):
        store.get("key")


@pytest.mark.parametrize("kind", ["memcached", "redis"])
@pytest.mark.parametrize(
    ("host", "unix_socket", "said"),
    [("nobody.invalid", None, "nobody.invalid"), ("", "/nowhere/socket", "No such file")],
)
def test_a_wrong_address(
    caplog: pytest.LogCaptureFixture, kind: str, host: str, unix_socket: str | None, said: str
) -> None:
    store = open_body_store(kind, host, None, unix_socket, HOUR)
    assert store.put({"key": b"value"}) == set()
    [line] = warnings(caplog)
    assert said in line.partition(": ")[2]


@contextmanager
def impostor(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does `behave` with each client, in a thread of its own."""
    with socket.create_server(("127.0.0.1", free_port())) as listening:

        def run(client: socket.socket) -> None:
            with client, suppress(OSError):
                behave(client)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client = listening.accept()[0]
                    threading.Thread(target=run, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def trickle(client: socket.socket) -> None:
    """An answer that never ends, too often for a timeout of each read."""
    client.sendall(b"+")
    while True:
        client.sendall(b"x")
        time.sleep(0.1)


def sip(client: socket.socket) -> None:
    """Reads a little every now and then."""
    while client.recv(1000):
        time.sleep(0.1)


def hang_up(client: socket.socket) -> None:
    client.recv(10)


def speak_http(client: socket.socket) -> None:
    client.recv(1000)
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    client.recv(1000)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["memcached", "redis"])
@pytest.mark.parametrize("behave", [trickle, sip, hang_up, speak_http])
def test_another_server_holds_up_nothing(
    kind: str,
    behave: Callable[[socket.socket], None],
    pause: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pause(0)
    monkeypatch.setattr(body_store, "_READ_SIZE", 0)
    with impostor(behave) as port:
        store = open_body_store(kind, "127.0.0.1", port, None, HOUR)
        for _ in range(2):
            assert store.put(bodies(50, 10_000)) == set()
        with pytest.raises(StoreError):
            store.get("key")


def test_memcached_without_a_connection_left(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(b"ERROR Too many open connections\r\n")

    with impostor(refuse) as port:
        store = open_body_store("memcached", "127.0.0.1", port, None, HOUR)
        assert store.put({"key": b"value"}) == set()
        [line] = warnings(caplog)
        assert "no connection left" in line


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_nobody_accepts(kind: str) -> None:
    with socket.create_server(("127.0.0.1", free_port()), backlog=0) as listening:
        address = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # they fill the queue of connections
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        store = open_body_store(kind, *address, None, HOUR)
        assert store.put({"key": b"value"}) == set()
        for client in waiting:
            client.close()


# --- Refused --------------------------------------------------------------------------------------


def test_a_full_memcached(pause: Callable[[float], None], caplog: pytest.LogCaptureFixture) -> None:
    """With -M it refuses; what it says it holds is there, and it takes more when it has room."""
    pause(NEVER)
    with Memcached(memory=4, evict=False) as server:
        store = store_in(server)
        held = fill(store, 50_000) | fill(store, 50_000) | fill(store, 50_000)
        assert len(held) > 20
        check(store, held)
        [line] = warnings(caplog)
        assert "refused" in line
        assert "out of memory" in line
        server.ask("flush_all")
        batch = bodies(20, 50_000)
        assert store.put(batch) == {*batch}


def test_a_full_memcached_and_many_threads() -> None:
    """Each has what it was told, whatever is refused at the same time."""
    with Memcached(memory=4, evict=False) as server, ThreadPoolExecutor(4) as executor:
        store = store_in(server)
        for held in executor.map(lambda size: fill(store, size), (1000, 5000, 20_000, 50_000)):
            check(store, held)


def test_what_is_too_large_for_memcached(
    pause: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    pause(NEVER)
    with Memcached() as server:
        store = store_in(server)
        for _ in range(3):
            small, large = bodies(20, 1000), bodies(5, 1_100_000) | bodies(1, 2_000_000)
            batch = dict(random.sample([*(small | large).items()], 26))
            assert store.put(batch) == {*small}
            check(store, small)
            assert store.get(next(iter(large))) is None
        before = int(server.stats()["bytes_read"])
        assert store.put(bodies(1, 1_100_000)) == set()
        assert int(server.stats()["bytes_read"]) < before + 1000  # it is not sent again in vain
        [line] = warnings(caplog)
        assert "refused 6 messages" in line
        assert "-I" in line


def test_a_full_redis(pause: Callable[[float], None], caplog: pytest.LogCaptureFixture) -> None:
    pause(NEVER)
    with Redis(maxmemory="3mb") as server:
        store = store_in(server)
        held = fill(store, 20_000) | fill(store, 20_000) | fill(store, 20_000)
        assert len(held) > 20
        check(store, held)
        [line] = warnings(caplog)
        assert "refused" in line
        assert "maxmemory" in line
        server.ask("CONFIG SET maxmemory 0")
        batch = bodies(20, 20_000)
        assert store.put(batch) == {*batch}


def test_a_redis_that_only_reads(
    pause: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    pause(NEVER)
    with Redis() as server:
        store = store_in(server)
        store.put({"before": b"value"})
        server.ask(f"REPLICAOF 127.0.0.1 {free_port()}")
        assert store.put(bodies(5, 100)) == set()
        assert store.get("before") == b"value"
        [line] = warnings(caplog)
        assert "read only replica" in line
        server.ask("REPLICAOF NO ONE")
        batch = bodies(5, 100)
        assert store.put(batch) == {*batch}


def test_a_redis_that_cannot_save(caplog: pytest.LogCaptureFixture) -> None:
    with Redis() as server:
        store = store_in(server)
        (server.path / "dump.rdb").mkdir()
        server.ask("CONFIG SET save '3600 1'")
        server.ask("SET key value")
        server.ask("BGSAVE")
        wait_for(lambda: server.ask("SET key value").startswith("-MISCONF"))
        assert store.put(bodies(5, 100)) == set()
        [line] = warnings(caplog)
        assert "refused 5 messages" in line
        assert "MISCONF" in line


def test_a_redis_that_wants_a_password(caplog: pytest.LogCaptureFixture) -> None:
    with Redis(options=["--requirepass", "secret"]) as server:
        store = store_in(server)
        assert store.put({"key": b"value"}) == set()
        assert "uthentication" in warnings(caplog)[0]


# --- Many threads ---------------------------------------------------------------------------------


def value_of(key: str) -> bytes:
    """What only that key has."""
    return key.encode() * random.Random(key).choice([1, 3, 100, 2000])


class Crowd:
    """Threads that put and get at once for as long as the `with` lasts."""

    def __init__(self, store: BodyStore, threads: int = 8) -> None:
        self.held: set[str] = set()
        self.wrong: list[str] = []
        self.rounds = 0
        self._store = store
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._ended.is_set():
            names = keys(random.randint(1, 40))
            self.held |= (held := self._store.put({name: value_of(name) for name in names}))
            if not held <= {*names}:
                self.wrong.append("it holds what it was not given")
            for name in random.sample(names, min(5, len(names))):
                with suppress(StoreError):
                    if self._store.get(name) not in (None, value_of(name)):
                        self.wrong.append(name)
            self.rounds += 1

    def go_on(self) -> None:
        """Wait until all threads have done something more, and something was kept."""
        rounds, held = self.rounds + 50, len(self.held) + 200
        wait_for(lambda: self.rounds > rounds and len(self.held) > held, 60)

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_threads_do_not_mix_up_values(server: Server) -> None:
    store = store_in(server)
    with Crowd(store) as crowd:
        for _ in range(5):
            crowd.go_on()
    assert crowd.wrong == []
    check(store, {key: value_of(key) for key in crowd.held})


def test_a_server_that_halts_and_goes_on(server: Server, pause: Callable[[float], None]) -> None:
    """Its answers come late, and then to nobody."""
    pause(0.01)
    store = store_in(server)
    with Crowd(store) as crowd:
        for _ in range(4):
            crowd.go_on()
            halt(server)
            time.sleep(random.choice([0.2, 1.0, 1.5]))  # about as long as is waited for
            go_on(server)
        crowd.go_on()
    assert crowd.wrong == []
    check(store, {key: value_of(key) for key in crowd.held})


def test_memcached_killed_in_the_middle(pause: Callable[[float], None]) -> None:
    pause(0.01)
    with Memcached() as server:
        with Crowd(store_in(server)) as crowd:
            for _ in range(6):
                crowd.go_on()
                server.kill()
                server.start()
            crowd.go_on()
        assert crowd.wrong == []


def test_what_redis_says_it_holds_survives_its_death(pause: Callable[[float], None]) -> None:
    """With `appendfsync always` it answers when it has it on the disk."""
    pause(0.01)
    with Redis(durable=True) as server:
        store = store_in(server)
        with Crowd(store) as crowd:
            for _ in range(6):
                crowd.go_on()
                server.kill()
                server.start()
            crowd.go_on()
        assert crowd.wrong == []
        check(store, {key: value_of(key) for key in crowd.held})
