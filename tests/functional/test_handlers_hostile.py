"""Does what strangers write in addresses and headers reach a shell, a path or an argument?

Nearly all that is sent here has a word in it, which then is looked for where it must not be: in the
paths and the arguments of all system calls of the daemon and what it starts.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from tests.accounting import Client, Reply, Row, Table, rows, stuffed, table_of
from tests.acting import acting, settled
from tests.servers import Gsmtpd, find_program

WORD = "pwned"
FACTS = {
    "PATH", *(f"GSMTPD_{name}" for name in (
        "ID", "MAIL_ID", "DELIVERY", "ATTEMPT", "SENDER", "RECIPIENT", "MAILBOX", "CLIENT_IP",
        "HELO", "TLS", "RECEIVED_AT", "SUBJECT",
    )),
}  # fmt: skip
RECORDER = """#!{python} -I
import json, os, sys
facts = {{os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}}
facts.pop("LC_CTYPE", None)  # Python sets it for itself
found = {{"argv": sys.argv, "env": facts, "stdin": sys.stdin.buffer.read().decode("latin-1")}}
with open(f"{records}/{{os.environ['GSMTPD_DELIVERY']}}", "w") as file:
    json.dump(found, file)
"""
FIXED = ["--fixed", "two words", "$HOME", "*"]  # no shell reads them
SENDERS = [
    f'"$(touch {WORD})"@example.org',
    f'"`touch {WORD}`"@example.org',
    f'"; touch {WORD} ;"@example.org',
    f'"|touch {WORD}"@example.org',
    f'"../../../../tmp/{WORD}"@example.org',
    f"../../{WORD}@example.org".replace("..", "a"),
    f"-oQ/tmp/{WORD}@example.org",
    f"--{WORD}@example.org",
    f"|{WORD}@example.org",
    f"`{WORD}`@example.org",
    f"${{{WORD}}}@example.org",
    f'"\\"{WORD}\\\\"@example.org',
    f'"a@b>,<{WORD}"@example.org',
    f"{WORD * 12}@example.org",
    f"ö{WORD}@example.org",
    f"{WORD}@ö.example.org",
    f"{WORD}%0d%0aBcc:x@example.org".replace(":", "-"),
    f"=?utf-8?q?{WORD}=0ABcc?=@example.org",
]
RECIPIENTS = [each.replace("example.org", "example.com") for each in SENDERS if "ö.ex" not in each]
SUBJECTS = [
    f"$(touch {WORD})",
    f"`touch {WORD}`; touch {WORD} | touch {WORD} && touch {WORD} > /tmp/{WORD}",
    f"=?utf-8?q?{WORD}=0D=0ABcc:_{WORD}=40example.org?=",
    f"=?utf-8?q?{WORD}=0A=0ASecond_body?=",
    f"=?utf-8?q?{WORD}=00nul?=",
    f"=?utf-8?b?Li4vLi4vLi4vdG1wLw==?= ../../../{WORD}",
    f"--{WORD} -rf /{WORD}",
    f"%s %n %(x)s {{0}} {WORD}",
    f"GSMTPD_ID=1 {WORD}",
    WORD * 10000,
    f"{WORD}\0{WORD}",
    f"=?utf-8?q?=E2=80=A8{WORD}=C2=85=1B[2J?=",
]
REFUSED = [
    f"{WORD}\0@example.org",
    f"{WORD}\n@example.org",
    f'"{WORD}\r"@example.org',
    f"{WORD}\x1b@example.org",
    f"{WORD} -x@example.org",
    f"{'x' * 300}@example.org",
]


class Traced(Gsmtpd):
    """A daemon; all its calls with a path, and those of what it starts, are written down."""

    @property
    def calls(self) -> Path:
        """Where."""
        return self.path / "calls"

    def command(self) -> list[str]:
        # -D: the daemon, and not strace, is the child whom we send signals.
        strace = [find_program("strace"), "-D", "-f", "-qq", "-s", "100000", "--seccomp-bpf"]
        return [*strace, "-o", str(self.calls), "-e", "trace=%file", *super().command()]


class Posted(NamedTuple):
    """What a webhook has got."""

    path: str
    fields: dict[str, str]
    body: bytes


@pytest.fixture
def posted() -> Iterator[tuple[str, list[Posted]]]:
    """The URL of a server, without a path, and what is posted there."""
    found: list[Posted] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.append(Posted(self.path, dict(self.headers.items()), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", found
        server.shutdown()


class Stranger(NamedTuple):
    """Who sends what."""

    sender: str
    recipient: str
    subject: str

    def send(self, client: Client) -> Reply:
        """The reply to it, or the first that refuses it."""
        utf8 = "" if (self.sender + self.recipient).isascii() else " SMTPUTF8"
        name = self.subject if len(self.subject) < 900 else WORD
        content = (
            f"Subject: {self.subject}\r\nFrom: {name} <joe@example.org>\r\n"
            f"Message-ID: <$({WORD})@../{WORD}>\r\nReferences: <`{WORD}`@x> <-{WORD}@x>\r\n"
            f"X-{WORD}: x\r\nContent-Type: text/plain; name=../../{WORD}\r\n\r\n{WORD}\r\n"
        )
        for line in (f"MAIL FROM:<{self.sender}>{utf8}", f"RCPT TO:<{self.recipient}>", "DATA"):
            reply = client.command(line)
            if reply.code >= 400:
                return reply
        client.send(stuffed(content.encode()))
        return client.reply()


STRANGERS = [
    *(Stranger(each, "a@example.com", "x") for each in SENDERS),
    *(Stranger(f"s{n}@example.org", each, "x") for n, each in enumerate(RECIPIENTS)),
    *(Stranger(f"t{n}@example.org", "a@example.com", each) for n, each in enumerate(SUBJECTS)),
]


def test_strangers(tmp_path: Path, posted: tuple[str, list[Posted]]) -> None:
    url, posts = posted
    (tmp_path / "records").mkdir()
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER.format(python="/usr/bin/python3", records=tmp_path / "records"))
    recorder.chmod(0o755)
    arguments = " ".join(f"'{each}'" for each in FIXED)
    everybody = {"match": "@example.com"}
    with Gsmtpd({"domains": {"accept": "example.org, ö.example.org"}}) as smarthost:
        settings = acting(
            tmp_path,
            command=everybody | {"class": "command", "command": f'"{recorder} {arguments}"'},
            json=everybody | {"class": "webhook", "url": f"{url}/json"},
            raw=everybody | {"class": "webhook", "url": f"{url}/raw", "body": "raw"},
            maildir=everybody | {"class": "forward-to-maildir", "path": tmp_path / "maildir"},
            ball=everybody | {"class": "magic8ball"},
        )
        settings["handlers"] |= {
            "smarthost": f"127.0.0.1:{smarthost.port}", "time_limit": "60s", "tries": 1,
        }  # fmt: skip
        with Traced(settings) as daemon:
            ids = _sent(daemon)
            table = table_of(daemon)
            assert settled(table, 180) == []
            stored = rows(table)
            assert [row.hash for row in stored] == ids
            assert daemon.stop() == 0
            _check_calls(daemon, tmp_path)
        _check_records(tmp_path / "records", stored)
        _check_posts(posts, stored)
        _check_maildir(tmp_path / "maildir", stored)
        _check_replies(table_of(smarthost))
    assert {path.name for path in tmp_path.iterdir()} == {"records", "recorder", "maildir"}


def _sent(daemon: Gsmtpd) -> list[str]:
    """Send it all; the ids."""
    ids = []
    for stranger in STRANGERS:
        with Client(daemon.address) as client:
            ids.append(stranger.send(client.hello()).id)
    for address in REFUSED:
        with Client(daemon.address) as client:
            reply = Stranger(address, "a@example.com", "x").send(client.hello())
            assert 500 <= reply.code < 600, address
    return ids


def _check_calls(daemon: Traced, path: Path) -> None:
    """The word is in no path and no argument."""
    calls = daemon.calls.read_text(errors="replace").splitlines()
    programs = [line for line in calls if "execve(" in line and f'"{path}/recorder"' in line]
    assert len(programs) == len(STRANGERS)  # or nothing was seen
    assert any(f"{path}/maildir/new/" in line for line in calls)
    assert [line for line in calls if WORD in line] == []
    assert [line for line in calls if re.search(r'execve\("[^"]*/(?:ba|da)?sh"', line)] == []


def _check_records(path: Path, stored: list[Row]) -> None:
    """The program has got its own arguments, its facts, and the mail."""
    found = [json.loads(each.read_bytes()) for each in path.iterdir()]
    assert len(found) == len(STRANGERS)
    by_id = {each["env"]["GSMTPD_ID"]: each for each in found}
    for row, stranger in zip(stored, STRANGERS, strict=True):
        record = by_id[row.hash]
        assert record["argv"][1:] == FIXED
        assert set(record["env"]) == FACTS
        assert record["env"]["GSMTPD_SENDER"] == stranger.sender
        assert record["env"]["GSMTPD_RECIPIENT"] == stranger.recipient
        assert record["stdin"].encode("latin-1") == row.mail
        assert all(value.isprintable() for value in record["env"].values())


def _check_posts(posts: list[Posted], stored: list[Row]) -> None:
    own = {"Host", "Accept-Encoding", "Content-Length", "Content-Type", "User-Agent"}
    own |= {"Webhook-Id", "Webhook-Timestamp"}
    raw = {post.fields["Gsmtpd-Id"]: post for post in posts if post.path == "/raw"}
    found = [json.loads(post.body)["data"] for post in posts if post.path == "/json"]
    told = {data["id"]: data for data in found}
    assert len(posts) == len(raw) + len(told) == 2 * len(STRANGERS)
    assert {frozenset(post.fields) for post in posts} == {
        frozenset(own), frozenset(own | {"Gsmtpd-Id", "Gsmtpd-Sender", "Gsmtpd-Recipient"}),
    }  # fmt: skip
    for row, stranger in zip(stored, STRANGERS, strict=True):
        assert raw[row.hash].body == row.mail
        assert unquote(raw[row.hash].fields["Gsmtpd-Sender"]) == stranger.sender
        assert unquote(raw[row.hash].fields["Gsmtpd-Recipient"]) == stranger.recipient
        data = told[row.hash]
        assert (data["sender"], data["recipient"]) == stranger[:2]
        assert "\n" not in data["subject"] and "\0" not in data["subject"]


def _check_maildir(path: Path, stored: list[Row]) -> None:
    assert {each.name for each in path.iterdir()} == {"tmp", "new", "cur"}
    assert [*(path / "tmp").iterdir()] == [*(path / "cur").iterdir()] == []
    files = [*(path / "new").iterdir()]
    assert all(re.fullmatch(r"[0-9]+\.[0-9a-f]{32}\.gsmtpd", each.name) for each in files)
    mails = sorted(row.mail.replace(b"\r\n", b"\n") for row in stored)
    assert sorted(each.read_bytes() for each in files) == mails


def _check_replies(table: Table) -> None:
    """They go to whom they are for, and have no field that a stranger has made."""
    own = {"From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Precedence"}
    own |= {"In-Reply-To", "References", "MIME-Version", "Content-Type"}
    own |= {"Content-Transfer-Encoding"}
    replies = rows(table)
    assert len(replies) > len(STRANGERS) // 2
    assert {row.recipient for row in replies} <= {each.sender for each in STRANGERS}
    for row in replies:
        header = row.content.decode().partition("\r\n\r\n")[0]
        names = [line.partition(":")[0] for line in header.split("\r\n") if line[0] not in " \t"]
        assert set(names) <= own
        assert len(names) == len(set(names))
