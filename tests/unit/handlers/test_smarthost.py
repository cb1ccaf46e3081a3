"""How does a reply get to the smarthost, and what if that will not have it?"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from gsmtpd.handlers import GiveUpError, RetryError
from gsmtpd.handlers.smarthost import Smarthost, is_safe, parse, send
from tests.certificates import Authority
from tests.handled import HOSTILE, smarthost
from tests.servers import free_port

OCTETS = b"Subject: x\r\n\r\n.one dot\r\n"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("mail.example.com", "mail.example.com", 25),
        ("mail.example.com:587", "mail.example.com", 587),
        ("192.0.2.1:2525", "192.0.2.1", 2525),
        ("[2001:db8::1]", "2001:db8::1", 25),
        ("[2001:db8::1]:26", "2001:db8::1", 26),
    ],
)
def test_where_it_is(text: str, host: str, port: int) -> None:
    assert parse(text) == Smarthost(host, port)
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text", ["", ":25", "a:0", "a:65536", "a:b", "2001:db8::1", "a b", "a\n", "[a", "a:٢"]
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="write one like mail.example.com:25"):
        parse(text)


def test_it_goes_from_the_null_reverse_path() -> None:
    with smarthost() as box:
        send(parse(box.where), "mx.example.com", "joe@example.org", OCTETS)
    (mail,) = box.mails
    assert (mail.mail_from, mail.rcpt_tos) == ("<>", ["joe@example.org"])
    assert mail.content == OCTETS
    assert not {"SMTPUTF8", "BODY=8BITMIME"} & {*mail.mail_options}
    assert box.sessions[0].host_name == "mx.example.com"
    assert box.sessions[0].ssl is None


def test_tls_is_used_where_it_is_offered_whoever_has_signed(tmp_path: Path) -> None:
    pair = Authority(tmp_path).pair("somebody.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    with smarthost(tls=context) as box:
        send(parse(box.where), "mx.example.com", "joe@example.org", OCTETS)
    assert len(box.mails) == 1
    assert box.sessions[0].ssl is not None


def test_smtputf8_is_asked_for_where_an_address_needs_it() -> None:
    with smarthost(smtputf8=True) as box:
        send(parse(box.where), "mx.example.com", "jö@example.org", "To: jö\r\n\r\n".encode())
    assert box.mails[0].rcpt_tos == ["jö@example.org"]
    assert "SMTPUTF8" in box.mails[0].mail_options
    with smarthost() as box, pytest.raises(GiveUpError, match="no SMTPUTF8"):
        send(parse(box.where), "mx.example.com", "jö@example.org", OCTETS)


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_4xx_is_tried_again_and_5xx_is_not(command: str) -> None:
    with smarthost(**{command: "451 4.3.0 come again"}) as box:
        where = parse(box.where)
        with pytest.raises(RetryError, match=f"smarthost {box.where} says 451 4.3.0 come again"):
            send(where, "mx.example.com", "joe@example.org", OCTETS)
        box.refuse[command] = "550 5.1.1 nobody here"
        with pytest.raises(GiveUpError, match=f"smarthost {box.where} says 550 5.1.1 nobody here"):
            send(where, "mx.example.com", "joe@example.org", OCTETS)
    assert box.mails == []


def test_one_that_is_away_is_tried_again() -> None:
    with pytest.raises(RetryError, match="Connection refused"):
        send(Smarthost("127.0.0.1", free_port()), "mx.example.com", "joe@example.org", OCTETS)


@pytest.mark.parametrize(
    "address",
    [
        *(f"{each}@example.org" for each in HOSTILE if not each.startswith(("-", ".", "/", "x"))),
        *("joe@example.org\nRCPT TO:<victim@example.net>", "a b@example.org", "joe", "<a@b>"),
        *("a@b> <c@d", "Joe <joe@example.org>", "a@b,c@d", "a@b\u2028", "a@b\x85"),
        "=?utf-8?q?a=40b?=@example.org",
    ],
)
def test_no_mail_goes_to_an_address_that_is_two_things(address: str) -> None:
    assert not is_safe(address)
    with smarthost() as box, pytest.raises(GiveUpError, match="no mail can be sent to") as raised:
        send(parse(box.where), "mx.example.com", address, OCTETS)
    assert box.sessions == []
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "address",
    ["a@b", "-a@b", "/a/b@c", "a+b=c!#$%&'*/?^_`{|}~@example.org", '"a@b"@c', "a@[IPv6:::1]"],
)
def test_what_is_odd_and_no_danger_is_passed_on(address: str) -> None:
    with smarthost() as box:
        send(parse(box.where), "mx.example.com", address, OCTETS)
    assert box.mails[0].rcpt_tos == [address]
