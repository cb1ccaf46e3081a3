"""Does Postfix bring its queue home to us, by SMTP over TLS and by LMTP, while MariaDB fails?"""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.accounting import (
    Client,
    Mail,
    MySQLTable,
    count,
    rows,
    send,
    stuffed,
    table_of,
    with_token,
)
from tests.certificates import Authority
from tests.conftest import make_schema
from tests.peers import Postfix
from tests.servers import Gsmtpd, MariaDB, free_port, mysql_store, tls_section, wait_for

NAME = "mx.example.com"
QUEUE = 1000  # messages for each of the two
OUTAGE = 3.0  # seconds
HOME = 150.0  # seconds in which all is to arrive after it
TOKEN = re.compile(rb"token-[0-9a-f]{32}")


def for_(domain: str, number: int) -> list[Mail]:
    """Mails like no other to `domain`, each tenth to two recipients."""
    return [
        with_token(2000, [f"u{one}@{domain}", f"v{one}@{domain}"][: 1 + (one % 10 == 0)])
        for one in range(number)
    ]


def token(content: bytes) -> bytes:
    match = TOKEN.search(content)
    assert match, content
    return match.group()


def test_two_queues_and_an_outage(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    lmtp = ("127.0.0.1", free_port())
    with MariaDB(durable=True) as database:
        make_schema(database, "mail")
        settings = mysql_store(database, "mail") | {
            "domains": {"accept": "smtp.example.com, lmtp.example.com"},
            "tls": tls_section(*ca.pair(NAME)),
            "listen": {
                "mx": {"tls": "required"},
                "inside": {"address": f"127.0.0.1:{lmtp[1]}", "protocol": "lmtp"},
            },
        }
        with Gsmtpd(settings) as daemon, Postfix(transports(ca, daemon, lmtp)) as postfix:
            table = MySQLTable(database, "mail")
            mails = for_("smtp.example.com", QUEUE) + for_("lmtp.example.com", QUEUE)
            with ThreadPoolExecutor(8) as pool:
                sending = [
                    pool.submit(send, postfix.address, *mails[start::8]) for start in range(8)
                ]
                wait_for(lambda: count(table) > QUEUE / 4)
                database.kill()
                broken = time.monotonic()
                replies = [reply for future in sending for reply in future.result()]
            assert {reply.code for reply in replies} == {250}
            wait_for(lambda: len(postfix.deliveries("deferred")) > 10)
            time.sleep(max(0.0, broken + OUTAGE - time.monotonic()))
            database.start()
            postfix.flush()
            wait_for(lambda: postfix.queued() == 0, HOME)
            stored = rows(table)
            sent, deferred, bounced = map(postfix.deliveries, ("sent", "deferred", "bounced"))
    expected = Counter((token(mail.content), to) for mail in mails for to in mail.recipients)
    found = Counter((token(row.content), row.recipient) for row in stored)
    doubles = (found - expected).total()
    print(f"\n{len(mails)} mails, {len(deferred)} attempts deferred, {doubles} rows twice")
    assert set(found) == set(expected), "lost, or never sent"
    assert len(sent) == expected.total()
    # What was stored while the answer was lost is stored again: no more than was ever deferred.
    assert doubles <= len(deferred)
    assert all(
        re.search(r"said: 4[25][1-4] 4\.|lost connection|timed out|refused", line)
        for line in deferred
    ), deferred
    assert not bounced
    for row in stored:
        over_tls = row.recipient.endswith("@smtp.example.com")
        assert (b" with ESMTPS (TLSv1.3:" if over_tls else b" with LMTP id ") in row.front


def transports(ca: Authority, daemon: Gsmtpd, lmtp: tuple[str, int]) -> dict[str, object]:
    """Settings of a Postfix that brings the one domain by SMTP over TLS, the other by LMTP."""
    return {
        "transport_maps": "inline:{"
        f"{{smtp.example.com = smtp:[127.0.0.1]:{daemon.port}}}, "
        f"{{lmtp.example.com = lmtp:inet:127.0.0.1:{lmtp[1]}}}}}",
        "smtp_tls_security_level": "verify",
        "smtp_tls_verify_cert_match": NAME,
        "smtp_tls_CAfile": ca.file,
        "smtp_tls_loglevel": "1",
        "smtp_tls_session_cache_database": "btree:${data_directory}/smtp_scache",
    }


def test_postfix_sends_what_needs_more_than_seven_bits(tmp_path: Path) -> None:
    """8BITMIME, SMTPUTF8, dots and a line of 998 octets come through as they are."""
    body = "Grüße\r\n.\r\n..\r\n".encode() + b"x" * 998 + b"\r\n"
    sender = "grüße@example.org"
    head = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    with Gsmtpd() as daemon, Postfix({"relayhost": f"[127.0.0.1]:{daemon.port}"}) as postfix:
        with Client(postfix.address) as client:
            client.hello()
            assert client.command(f"MAIL FROM:<{sender}> BODY=8BITMIME SMTPUTF8").code == 250
            assert client.command("RCPT TO:<empfänger@example.com>").code == 250
            assert client.command("DATA").code == 354
            client.send(stuffed(head + body))
            assert client.reply().code == 250
        wait_for(lambda: count(table_of(daemon)) == 1)
        (row,) = rows(table_of(daemon))
    assert row.recipient == "empfänger@example.com"
    assert row.content.endswith(body)
    assert b" with UTF8SMTP id " in row.front
