"""Has each refusal its word?"""

from __future__ import annotations

import pytest

from gsmtpd.handlers.hooks import defer, refuse
from gsmtpd.metrics import Reason
from gsmtpd.server.reasons import reason_of
from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply, client_listed

REFUSALS = [
    (name, said)
    for name, said in vars(reply).items()
    if isinstance(said, Reply) and not said.positive
]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (reply.NOT_SERVED, Reason.RELAY),
        (reply.USER_NOT_YET, Reason.NOT_YET),
        (reply.NO_MEMORY, Reason.MEMORY),
        (reply.TOO_SLOW, Reason.TIMEOUT),
        (reply.TLS_FIRST, Reason.TLS),
        (reply.RCPT_FIRST, Reason.SYNTAX),
        (reply.HOOK_TROUBLE, Reason.HOOK),
        (reply.INTERNAL_ERROR, Reason.OTHER),
        (client_listed("192.0.2.1", "zen.example"), Reason.DNSBL),
        (client_listed("2001:db8::1", "zen.example: spam, spam"), Reason.DNSBL),
        (refuse("I do not like you"), Reason.HOOK),
        (defer("Your tea is too cold"), Reason.HOOK),
        (Reply(550, "5.7.1", ""), Reason.HOOK),
    ],
)
def test_reasons(said: Reply, reason: Reason) -> None:
    assert reason_of(said) is reason


@pytest.mark.parametrize(("name", "said"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_every_refusal_of_ours_is_known(name: str, said: Reply) -> None:
    assert reason_of(said) not in (Reason.HOOK, Reason.DNSBL) or name == "HOOK_TROUBLE"


def test_every_reason_is_given() -> None:
    given = {reason_of(said) for _, said in REFUSALS} | {Reason.DNSBL}
    assert given == {*Reason}
