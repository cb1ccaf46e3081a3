"""What does an application get for each mail, and what may it answer?"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from gsmtpd.handlers import GiveUpError, RetryError
from gsmtpd.handlers.webhook import MAX_REASON, Webhook, _key, signature
from tests.certificates import Authority
from tests.handled import CONTENT, DELIVERY, HOSTILE, ID, mail_of, prepared
from tests.servers import free_port

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Call(NamedTuple):
    """What the application has got."""

    path: str
    headers: Message
    body: bytes


class App:
    """A web server. calls: what it has got. answer: what it says, from the status line on."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.endless = b""  # what it says behind that for as long as somebody listens
        self.url = ""


@contextmanager
def application(tls: ssl.SSLContext | None = None) -> Iterator[App]:
    """A web server of this process on a port of its own."""
    app = App()

    class Request(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            size = int(self.headers["Content-Length"])
            app.calls.append(Call(self.path, self.headers, self.rfile.read(size)))
            try:
                self.wfile.write(app.answer)
                while app.endless:
                    self.wfile.write(app.endless)
            except OSError:
                pass  # the client has heard enough

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    app.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/mail?app=1"
    try:
        yield app
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def app() -> Iterator[App]:
    """A web server that says 204 until it is told otherwise."""
    with application() as running:
        yield running


def test_json(app: App) -> None:
    mail = mail_of(attempt=3, is_tls=True)
    prepared(Webhook, url=app.url).handle(mail)
    (call,) = app.calls
    assert call.path == "/mail?app=1"
    assert call.headers["Content-Type"] == "application/json"
    said = json.loads(call.body)
    assert said["type"] == "mail.received"
    assert said["timestamp"] == "2025-11-22T08:26:40.250000Z"
    data = said["data"]
    assert base64.b64decode(data.pop("raw")) == mail.raw
    assert data == {
        "delivery": DELIVERY,
        "id": ID,
        "mail_id": 7,
        "sender": "joe@example.org",
        "recipient": "ball@example.com",
        "mailbox": "ball@example.com",
        "client_ip": "192.0.2.1",
        "helo": "client.example.org",
        "tls": True,
        "from": "Joe <joe@example.org>",
        "to": "ball@example.com",
        "subject": "Will it rain?",
        "message_id": "<1@example.org>",
        "text": "Soon, I mean.\n",
        "size": len(mail.raw),
    }


def test_raw(app: App) -> None:
    mail = mail_of(CONTENT + b"\0\xff")
    prepared(Webhook, url=app.url, body="raw").handle(mail)
    (call,) = app.calls
    assert call.body == mail.raw
    assert call.headers["Content-Type"] == "message/rfc822"
    assert call.headers["Gsmtpd-Id"] == ID
    assert call.headers["Gsmtpd-Sender"] == "joe@example.org"
    assert call.headers["Gsmtpd-Recipient"] == "ball@example.com"


@pytest.mark.parametrize("body", ["json", "raw"])
def test_each_try_has_the_same_body_and_id_and_its_own_signature(app: App, body: str) -> None:
    hook = prepared(Webhook, url=app.url, body=body, secret=SECRET)
    before = int(time.time())
    for attempt in (1, 2):
        hook.handle(mail_of(attempt=attempt))
    first, second = app.calls
    assert first.body == second.body
    for call in app.calls:
        assert call.headers["Webhook-Id"] == DELIVERY
        moment = call.headers["Webhook-Timestamp"]
        assert before <= int(moment) <= time.time()
        # As https://www.standardwebhooks.com has it.
        signed = f"{DELIVERY}.{moment}.".encode() + call.body
        right = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert call.headers["Webhook-Signature"] == f"v1,{right}"


def test_it_signs_as_the_example_of_the_standard_does() -> None:
    key = _key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "")
    body = b'{"test": 2432232314}'
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_a_secret_nothing_is_signed(app: App) -> None:
    prepared(Webhook, url=app.url).handle(mail_of())
    assert app.calls[0].headers["Webhook-Signature"] is None


@pytest.mark.parametrize("text", HOSTILE)
def test_what_strangers_write_stays_in_its_value(app: App, text: str) -> None:
    content = b"Subject: " + text.encode(errors="surrogatepass") + b"\r\n\r\n"
    facts = dict.fromkeys(("sender", "recipient", "mailbox", "helo"), text[:2000])
    mail = mail_of(content, **facts)
    usual = mail_of()
    for body in ("raw", "json"):
        for each in (usual, mail):
            prepared(Webhook, url=app.url, body=body).handle(each)
    usual_raw, raw, usual_json, as_json = app.calls
    assert [*raw.headers] == [*usual_raw.headers]
    assert [*as_json.headers] == [*usual_json.headers]
    shown = text[:2000].encode(errors="replace").decode()
    assert unquote(raw.headers["Gsmtpd-Sender"]) == shown
    assert raw.headers["Gsmtpd-Sender"].isascii()
    assert raw.headers["Gsmtpd-Sender"].isprintable()
    assert raw.path == as_json.path == "/mail?app=1"
    data = json.loads(as_json.body)["data"]
    assert [data[name] for name in facts] == [shown] * 4


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        ("410 Gone", GiveUpError, "127.0.0.1 wants no more of this: 410 Gone because"),
        ("406 Not Acceptable", GiveUpError, "wants no more of this: 406 Not Acceptable"),
        ("400 Bad Request", RetryError, "127.0.0.1 says 400 Bad Request because"),
        ("404 Not Found", RetryError, "says 404 Not Found"),
        ("503 Busy", RetryError, "says 503 Busy"),
        ("302 Found", RetryError, "302 Found because; redirects are not followed: set url"),
    ],
)
def test_what_it_answers_decides(app: App, status: str, error: type[Exception], said: str) -> None:
    app.answer = (
        f"HTTP/1.1 {status}\r\nLocation: {app.url}\r\nContent-Length: 8\r\n\r\nbecause\n".encode()
    )
    with pytest.raises(error, match=said):
        prepared(Webhook, url=app.url).handle(mail_of())
    assert len(app.calls) == 1


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("120", lambda pause: pause == 120),
        ("999999999999", lambda pause: pause == 86400),
        ("9" * 400, lambda pause: pause == 86400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", lambda pause: pause == 0),
        ("soon", lambda pause: pause is None),
        ("-5", lambda pause: pause is None),
        ("Wed, 99 Oct 99999 07:28:00", lambda pause: pause is None),
    ],
)
def test_it_says_when_to_come_again(
    app: App, value: str, right: Callable[[float | None], bool]
) -> None:
    app.answer = f"HTTP/1.1 429 Slow\r\nRetry-After: {value}\r\n\r\n".encode()
    with pytest.raises(RetryError) as raised:
        prepared(Webhook, url=app.url).handle(mail_of())
    assert right(raised.value.after)


def test_of_an_endless_answer_only_the_beginning_is_read(app: App) -> None:
    app.answer, app.endless = b"HTTP/1.1 500 No\r\n\r\n", b"sorry " * 10_000
    with pytest.raises(RetryError, match="500 No sorry sorry") as raised:
        prepared(Webhook, url=app.url).handle(mail_of())
    assert len(str(raised.value)) < MAX_REASON + 50


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 100\r\n\r\nshort",
        b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\nshort",
        b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
    ],
)
def test_done_is_done_though_it_breaks_off(app: App, rest: bytes) -> None:
    app.answer = b"HTTP/1.1 200 OK\r\n" + rest
    prepared(Webhook, url=app.url).handle(mail_of())


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200]
)
def test_what_is_no_answer_is_tried_again(app: App, answer: bytes) -> None:
    app.answer = answer
    with pytest.raises(RetryError, match="127.0.0.1: ."):
        prepared(Webhook, url=app.url).handle(mail_of())


def test_one_that_is_away_or_silent_is_tried_again() -> None:
    away = prepared(Webhook, url=f"http://127.0.0.1:{free_port()}/")
    with pytest.raises(RetryError, match="127.0.0.1: .*refused"):
        away.handle(mail_of())
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(RetryError, match="127.0.0.1: timed out"):
            prepared(Webhook, url=url, timeout="0.1").handle(mail_of())


def test_no_proxy_is_taken_from_the_environment(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    prepared(Webhook, url=app.url).handle(mail_of())
    assert len(app.calls) == 1


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    with application(context) as app:
        with pytest.raises(RetryError, match="CERTIFICATE_VERIFY_FAILED"):
            prepared(Webhook, url=app.url).handle(mail_of())
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        prepared(Webhook, url=app.url).handle(mail_of())
        assert len(app.calls) == 1


def test_a_secret_may_be_in_a_file(app: App, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\nnot this\n")
    prepared(Webhook, url=app.url, secret_file=str(path)).handle(mail_of())
    assert app.calls[0].headers["Webhook-Signature"].startswith("v1,")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": ""}, "url is missing: write one like https://"),
        ({"url": "app.example.com"}, "url = app.example.com: write one like https://"),
        ({"url": "file:///etc/passwd"}, "write one like"),
        ({"url": "http://:80/"}, "write one like"),
        ({"url": "http://a:99999/"}, "url = http://a:99999/: "),
        ({"url": "http://a/ b"}, "%20"),
        ({"url": "http://a/\r\nX: y"}, "%20"),
        ({"url": "http://ä/"}, "%20"),
        ({"url": "http://u:p@a/"}, "no user or password"),
        ({"body": "xml"}, "body = xml: write json or raw"),
        ({"timeout": "soon"}, "timeout = soon: write a number of seconds above 0"),
        ({"timeout": "0"}, "timeout = 0: write"),
        ({"timeout": "nan"}, "timeout = nan: write"),
        ({"timeout": "inf"}, "timeout = inf: write"),
        ({"secret": "hush"}, "secret: write whsec_ and the base64 of 24 to 64 octets"),
        ({"secret": "whsec_!"}, "secret: write whsec_"),
        ({"secret": "whsec_c2hvcnQ="}, "secret: write whsec_"),
        ({"secret": base64.b64encode(KEY).decode()}, "secret: write whsec_"),
        ({"secret": SECRET, "secret_file": "/x"}, "write one of them"),
        ({"secret_file": "/no/such"}, "secret_file = /no/such: No such file"),
        ({"secret_file": "/dev/null"}, "secret_file = /dev/null: write whsec_"),
    ],
)
def test_bad_settings_are_told_in_a_line(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("+", r"\+")) as raised:
        prepared(Webhook, **({"url": "http://127.0.0.1/"} | settings))
    assert "hush" not in str(raised.value)
    assert len(str(raised.value)) < 200
