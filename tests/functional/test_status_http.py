"""Does the HTTP server let in whom it should, say what it should, and outlast what happens?"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from email.message import EmailMessage
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import pymysql
import pytest

from tests.accounting import Client, Mail, send, simple, table_of
from tests.conftest import make_schema
from tests.servers import (
    Gsmtpd,
    MariaDB,
    Redis,
    ServerError,
    environment,
    free_port,
    freeze,
    mysql_store,
    wait_for,
)
from tests.status_client import Status, served, with_status

PASSWORD = "open sesame"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Gsmtpd, Status]]:
    """A daemon with a page and no password, for tests that leave it as it is."""
    with served() as both:
        yield both


@pytest.fixture
def status(running: tuple[Gsmtpd, Status]) -> Status:
    return running[1]


def stored(daemon: Gsmtpd, content: bytes, to: str = "b@example.com") -> int:
    """Have mail stored; its id."""
    assert [reply.code for reply in send(daemon.address, Mail(content, (to,)))] == [250]
    ((found,),) = table_of(daemon).query("SELECT MAX(mail_id) FROM new_mail")
    return int(found)


# --- what every answer has ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/static/style.css", "/healthz", "/api/status", "/api/mails", "/nothing", "/metrics"],
)
def test_the_headers(status: Status, path: str) -> None:
    headers = status.ask(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "'unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["server"] == "gsmtpd"


def test_other_names_and_websites(status: Status) -> None:
    said = status.ask("/api/mails", headers={"Host": "evil.example"})
    assert (said.status, "127.0.0.1" in said.json["error"]) == (403, True)
    assert status.ask("/api/mails", headers={"Origin": "http://evil.example"}).status == 403
    assert status.ask("/", headers={"Host": "localhost"}).status == 200


@pytest.mark.parametrize("path", ["/static/../server.py", "/static/%2e%2e/server.py", "/static/"])
def test_no_other_files(status: Status, path: str) -> None:
    assert status.ask(path).status == 404


def test_the_password() -> None:
    with served(password=PASSWORD) as (daemon, status):
        assert status.ask("/api/mails").status == 200
        status.headers = {}
        assert status.ask("/healthz").body == b"ok\n"
        assert status.ask("/readyz").body == b"ok\n"
        for path in ("/", "/metrics", "/api/mails", "/static/style.css", "/nothing"):
            said = status.ask(path)
            assert said.status == 401
            assert said.headers["www-authenticate"]
        wrong = status.ask("/", headers={"Authorization": "Bearer nothing"})
        assert (wrong.status, [*wrong.json]) == (401, ["error"])
        assert PASSWORD not in daemon.log.read_text()


# --- one mail -------------------------------------------------------------------------------------


def test_all_of_a_mail(running: tuple[Gsmtpd, Status]) -> None:
    daemon, status = running
    made = EmailMessage()
    made["From"] = "Jörg <joerg@example.org>"
    made["Subject"] = "Grüße"
    made.set_content("Guten Tag!\n")
    made.add_alternative("<p>Guten <b>Tag</b>!</p>", subtype="html")
    made.add_attachment(b"\0\1\2", "text", "html", filename='../../ü"\r\n.html')
    content = made.as_bytes().replace(b"\n", b"\r\n")
    path = f"/api/mails/{stored(daemon, content)}"
    mail = status.get(path)
    assert (mail["subject"], mail["from"], mail["text"]) == (
        "Grüße", "joerg@example.org", "Guten Tag!\n",
    )  # fmt: skip
    assert (mail["has_html"], mail["unreadable"], mail["has_attach"]) == (True, None, 1)
    names = dict(mail["headers"])
    assert (names["Subject"], names["Delivered-To"]) == ("Grüße", "b@example.com")
    (attached,) = mail["attachments"]
    assert (attached["number"], attached["size"]) == (1, 3)
    raw = status.ask(f"{path}/raw")
    assert raw.body.endswith(content)
    assert raw.headers["content-type"] == "message/rfc822"
    assert raw.headers["content-disposition"].startswith("attachment; ")
    assert status.ask(f"{path}/text").body.decode() == "Guten Tag!\n"
    assert status.ask(f"{path}/headers").body.startswith(b"Delivered-To: ")
    page = status.ask(f"{path}/html")
    assert "<b>Tag</b>" in page.body.decode()
    assert page.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    said = status.ask(f"{path}/attachments/1")
    assert (said.body, said.headers["content-type"]) == (b"\0\1\2", "application/octet-stream")
    disposition = said.headers["content-disposition"]
    assert disposition.startswith("attachment; ")
    assert "/" not in disposition
    assert disposition.endswith(".html")
    assert "sandbox" in said.headers["content-security-policy"]
    assert status.ask(f"{path}/attachments/2").status == 404


def test_deletion(running: tuple[Gsmtpd, Status]) -> None:
    daemon, status = running
    number = stored(daemon, b"Subject: to be deleted\r\n\r\nx\r\n")
    path = f"/api/mails/{number}"
    done = status.ask(path, "DELETE")
    assert (done.status, done.body) == (204, b"")
    assert status.ask(path).status == 404
    assert status.ask(path, "DELETE").status == 404
    assert table_of(daemon).query(f"SELECT 1 FROM new_mail WHERE mail_id = {number}") == []


def test_a_search_goes_on(running: tuple[Gsmtpd, Status]) -> None:
    daemon, status = running
    for number in range(7):
        stored(daemon, b"Subject: page %d\r\n\r\nx\r\n" % number, "pages@example.com")
    found: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = status.get("/api/mails", to="Pages@example.com", limit=3, **more)
        assert len(page["mails"]) <= 3
        found += [mail["subject"] for mail in page["mails"]]
        if page["next"] is None:
            break
        more = {"before": page["next"]}
    assert found == [f"page {number}" for number in range(6, -1, -1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("to", "<found@example.com>"),
        ("domain", "@Example.com"),
        ("from", "<a@example.org>"),
    ],
)
def test_what_people_write_around_it(running: tuple[Gsmtpd, Status], name: str, value: str) -> None:
    daemon, status = running
    number = stored(daemon, simple("x").content, "found@example.com")
    found = status.get("/api/mails", **{name: value})["mails"]
    assert [mail["id"] for mail in found][:1] == [number]


def test_a_list_has_names_where_they_are_asked_for(running: tuple[Gsmtpd, Status]) -> None:
    daemon, status = running
    stored(daemon, b'From: "Lee, Ann" <ann@example.org>\r\n\r\nx\r\n', "names@example.com")
    number = stored(daemon, b"From: ann@example.org\r\n\r\nx\r\n", "names@example.com")
    (second, first) = status.get("/api/mails", to="names@example.com", names="true")["mails"]
    assert (first["from_name"], first["from"]) == ("Lee, Ann", "ann@example.org")
    assert second["from_name"] == ""
    for more in ({}, {"names": "false"}):
        found = status.get("/api/mails", to="names@example.com", **more)["mails"]
        assert not any("from_name" in mail for mail in found)
    assert status.get(f"/api/mails/{number}")["from_name"] == ""
    assert status.get(f"/api/mails/{number - 1}")["from_name"] == "Lee, Ann"
    wrong = status.ask("/api/mails?names=1")
    assert (wrong.status, b"true or false" in wrong.body) == (400, True)


# --- what befalls it ------------------------------------------------------------------------------


def test_the_database_is_away() -> None:
    with MariaDB() as database:
        make_schema(database, "away")
        with served(mysql_store(database, "away")) as (_, status):
            assert status.ask("/readyz").status == 200
            database.kill()
            wait_for(lambda: status.ask("/readyz").status == 503)
            said = status.ask("/readyz").body.decode()
            assert (said.count("\n"), said.startswith("database: ")) == (1, True)
            assert status.ask("/healthz").status == 200
            for path in ("/api/mails", "/api/mails/1", "/api/wait?to=x@example.com&timeout=1"):
                said_json = status.ask(path)
                assert (said_json.status, [*said_json.json][:1]) == (503, ["error"])
            assert status.ask("/metrics").status == 200
            assert status.ask("/api/status").status == 200
            database.start()
            wait_for(lambda: status.ask("/readyz").status == 200)
            assert status.ask("/api/mails").status == 200


def test_the_body_store_is_away_or_has_forgotten() -> None:
    with Redis() as redis:
        body = {"backend": "redis", "address": f"127.0.0.1:{redis.port}", "ttl": "1h"}
        with served({"store": {"body": body}}) as (daemon, status):
            raw = f"/api/mails/{stored(daemon, simple('x').content)}/raw"
            assert status.ask(raw).status == 200
            assert redis.ask("FLUSHALL") == "+OK"
            assert status.ask(raw).status == 410
            redis.stop()
            assert status.ask(raw).status == 503
            assert status.ask(raw.removesuffix("/raw")).json["unreadable"].startswith("mail 1: ")


def test_the_database_hangs() -> None:
    with MariaDB() as database:
        make_schema(database, "hangs")
        with served(mysql_store(database, "hangs")) as (daemon, status):
            status.get("/api/mails")
            freeze(database.pid)
            try:
                said = "database: no answer within 2 s\n"
                wait_for(lambda: status.ask("/readyz").body.decode() == said)
                assert status.ask("/readyz").status == 503
                assert status.ask("/healthz").status == 200
                assert status.ask("/").status == 200
                assert status.get("/api/status")["version"]
            finally:
                os.kill(database.pid, signal.SIGCONT)
            wait_for(lambda: status.ask("/readyz").status == 200)
            freeze(daemon.pid)
            try:
                wait_for(lambda: status.ask("/readyz").status == 503)
                said = status.ask("/readyz").body.decode()
                assert said.startswith("master: ")
                assert "database" not in said
            finally:
                os.kill(daemon.pid, signal.SIGCONT)


def test_the_database_ends_idle_connections() -> None:
    """As it does after wait_timeout: who asks then notices nothing."""
    with MariaDB() as database:
        make_schema(database, "idle")
        with served(mysql_store(database, "idle")) as (_, status):
            for _ in range(3):
                asked = [status.ask("/api/mails").status for _ in range(8)]
                assert asked == [200] * 8
                for (number,) in database.query(
                    "SELECT id FROM information_schema.processlist WHERE db = 'idle'"
                ):
                    with suppress(pymysql.Error):  # it has gone by itself
                        database.query(f"KILL {number}")


def test_it_is_replaced_where_it_dies() -> None:
    with served() as (daemon, status):
        before = worker_of(daemon)
        with Client(daemon.address) as client:
            client.hello()
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: worker_of(daemon) not in (0, before))
            wait_for(lambda: answers(status))
            assert client.deliver(Mail(b"Subject: x\r\n\r\nx\r\n")).code == 250


def worker_of(daemon: Gsmtpd) -> int:
    """The process that serves HTTP; 0 while there is none."""
    workers = daemon.status()["workers"]
    return next((int(one["pid"]) for one in workers if one["role"] == "status"), 0)


def answers(status: Status) -> bool:
    """Whether somebody answers there."""
    with suppress(OSError):
        return status.ask("/healthz").status == 200
    return False


def test_who_asks_once_hears_of_sessions() -> None:
    """They are noted only while somebody looks."""
    with served() as (daemon, status), Client(daemon.address) as client:
        client.hello()
        (session,) = status.get("/api/sessions")["sessions"]
        assert session["client"] == "127.0.0.1"


def test_a_reload_turns_it_on_moves_it_and_turns_it_off() -> None:
    with Gsmtpd() as daemon:
        assert worker_of(daemon) == 0
        statuses = []
        for _ in range(2):
            settings, port = with_status()
            daemon.configure(settings)
            daemon.ctl("reload")
            statuses.append(Status(port))
            assert [answers(each) for each in statuses] == [False] * (len(statuses) - 1) + [True]
        daemon.configure({})
        daemon.ctl("reload")
        assert not any(map(answers, statuses))
        wait_for(lambda: worker_of(daemon) == 0)


def test_connections_that_last_over_a_reload() -> None:
    """Who asks again hears it, and that it was the last answer; who rests is hung up on."""
    long = "import gsmtpd.status.server as server\nserver.LAST_ANSWERS = 3.0"
    with served(before=long) as (daemon, status), ExitStack() as stack:
        resting, asking = (
            stack.enter_context(closing(HTTPConnection("127.0.0.1", status.port, timeout=20)))
            for _ in range(2)
        )
        listening = stack.enter_context(status.events("/api/stream"))
        while not listening.id:
            listening.step()
        for each in (resting, asking):
            assert asked(each) == (200, None)
        before = worker_of(daemon)
        daemon.ctl("reload")
        assert asked(asking) == (200, "close")
        assert resting.sock.recv(1) == b""
        wait_for(lambda: not Path(f"/proc/{before}").exists(), 30)
        assert "Traceback" not in daemon.log.read_text()


def test_many_who_ask_over_reloads_are_answered() -> None:
    with served() as (daemon, status), ThreadPoolExecutor(6) as executor:
        over = threading.Event()

        def ask(path: str) -> int:
            answers = 0
            while not over.is_set():
                with (
                    closing(HTTPConnection("127.0.0.1", status.port, timeout=20)) as connection,
                    suppress(HTTPException, ConnectionError),  # it was just hung up on
                ):
                    while not over.is_set() and asked(connection, path)[1] is None:
                        answers += 1
            return answers

        wait = "/api/wait?to=you@example.com&timeout=0.05"
        asking = [executor.submit(ask, path) for path in 3 * ["/healthz", wait]]
        for _ in range(4):
            daemon.ctl("reload")
        over.set()
        assert all(each.result() for each in asking)
        assert "Traceback" not in daemon.log.read_text()


def asked(connection: HTTPConnection, path: str = "/healthz") -> tuple[int, str | None]:
    """The status of the answer, and what it says of the connection."""
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("Connection")


def test_who_says_nothing_is_hung_up_on() -> None:
    quick = "import gsmtpd.status.guests as guests\nguests.HEAD_WITHIN = 0.3"
    with served(before=quick) as (_, status):
        address = ("127.0.0.1", status.port)
        for said in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-"):
            gone = suppress(ConnectionResetError)
            with socket.create_connection(address, 30) as slow, gone:
                slow.sendall(said)
                assert slow.recv(1) == b""
        # But not who waits for an answer.
        waited = status.get("/api/wait", to="nobody@example.com", timeout=1)
        assert waited["mail"] is None


def test_too_many_connections() -> None:
    few = "import gsmtpd.status.guests as guests\nguests.MAX_CONNECTIONS = 3"
    with served(before=few) as (_, status), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", status.port), 30))
        wait_for(lambda: status.ask("/healthz").status == 503)
        said = status.ask("/healthz")
        assert said.json == {"error": "too many connections; try later."}
        stack.close()
        wait_for(lambda: status.ask("/healthz").status == 200)


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"POST /api/mails HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: \xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"EHLO example.com\r\nMAIL FROM:<>\r\n\r\n",
        b"\x16\x03\x01 a TLS hello\r\n\r\n",
    ],
)
def test_what_is_no_good_request(running: tuple[Gsmtpd, Status], octets: bytes) -> None:
    daemon, status = running
    gone = suppress(ConnectionError)
    with socket.create_connection(("127.0.0.1", status.port), 30) as client, gone:
        client.sendall(octets)
        client.shutdown(socket.SHUT_WR)
        said = client.recv(65536)
        assert said == b"" or said.split()[1] < b"500", said
    assert status.ask("/healthz").status == 200
    assert "Traceback" not in daemon.log.read_text() + daemon.output.read_text()


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"\0" * 100, "this cannot be read as a request of HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nsecret: \0", "this cannot be read as a request of HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nX: " + b"secret" * 4000, "a line of the request is too long"),
    ],
)
def test_what_cannot_be_read_is_answered_shortly_and_not_logged(
    running: tuple[Gsmtpd, Status], octets: bytes, why: str
) -> None:
    daemon, status = running
    logged = daemon.log.read_text(), daemon.output.read_text()
    with socket.create_connection(("127.0.0.1", status.port), 30) as client:
        client.sendall(octets + b"\r\n\r\n")
        answer = HTTPResponse(client)
        answer.begin()
        assert (answer.status, json.loads(answer.read())) == (400, {"error": why})
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["Server"] == "gsmtpd"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (daemon.log.read_text(), daemon.output.read_text()) == logged


# --- configured wrongly ---------------------------------------------------------------------------


def checked(tmp_path: Path, section: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """What gsmtpd -t says of a [status]."""
    conf = tmp_path / "gsmtpd.conf"
    conf.write_text(
        f"[server]\nuser = root\n[store]\n[[sqlite]]\npath = {tmp_path}/mail.db\n{section}"
    )
    conf.chmod(0o600)
    code = f"{before}\nimport sys, gsmtpd.cli\nsys.exit(gsmtpd.cli.main())"
    return subprocess.run(
        [sys.executable, "-c", code, "-t", "-c", str(conf)],
        check=False, capture_output=True, text=True, timeout=60, env=environment(),
    )  # fmt: skip


@pytest.mark.parametrize("module", ["aiohttp", "prometheus_client"])
def test_a_library_is_missing(tmp_path: Path, module: str) -> None:
    before = (
        "import importlib.util as util\nfind = util.find_spec\n"
        f"util.find_spec = lambda name: None if name == {module!r} else find(name)"
    )
    done = checked(tmp_path, "[status]\nlisten = 8025\n", before)
    assert done.returncode == 78
    assert "[status] listen: needs" in done.stderr
    assert f"python3-{module.replace('_', '-')}" in done.stderr
    assert checked(tmp_path, "", before).returncode == 0


def test_a_port_that_is_taken(running: tuple[Gsmtpd, Status]) -> None:
    settings, _ = with_status()
    settings = settings | {"status": {"listen": str(running[1].port)}}
    daemon = Gsmtpd(settings)
    done = subprocess.run(
        daemon.command(), check=False, capture_output=True, text=True, timeout=60, env=environment()
    )
    daemon.close()
    assert done.returncode == 69
    assert f"cannot listen on 127.0.0.1:{running[1].port}: " in done.stderr
    assert done.stderr.endswith("; stop it, or change [status] listen\n")


def test_a_port_that_is_taken_at_a_reload() -> None:
    with Gsmtpd() as daemon, socket.create_server(("127.0.0.1", 0)) as taken:
        daemon.configure({"status": {"listen": str(taken.getsockname()[1])}})
        with pytest.raises(ServerError, match=r"; stop it, or change \[status\] listen"):
            daemon.ctl("reload")


def test_another_address(tmp_path: Path) -> None:
    port = free_port()
    done = checked(tmp_path, f"[status]\nlisten = 0.0.0.0:{port}\n")
    assert done.returncode == 78
    assert "can be reached from elsewhere, and there is no password" in done.stderr
    assert checked(tmp_path, f"[status]\nlisten = 0.0.0.0:{port}\npassword = x\n").returncode == 0
