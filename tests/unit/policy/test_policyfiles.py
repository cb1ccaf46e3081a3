"""Do lists and their files become one policy, and follow their files while that makes sense?"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.policy.decision import Policy, Reason, Rule, Unknown, decide, explain
from gsmtpd.policy.files import LOOK, Lists, PolicyFiles, PolicyUpkeep
from gsmtpd.policy.lists import ListError
from gsmtpd.policy.questions import Answer, Question
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox

Write = Callable[[str, str], str]
Refresh = Callable[[PolicyFiles], tuple[str, ...]]

OK, NOT_SERVED, NO_SUCH_USER = reply.RECIPIENT_OK, reply.NOT_SERVED, reply.NO_SUCH_USER


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file, which is newer each time; gives "@" and its path."""
    times = count(1)

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        os.utime(path, (next(times),) * 2)
        return f"@{path}"

    return write


@pytest.fixture
def refresh(tmp_path: Path) -> Refresh:
    """Looks as often as a change needs to be taken over; gives the problems by then."""

    def refresh(files: PolicyFiles) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for _ in range(2):
            try:
                files.refresh()
                found = ()
            except ListError as error:
                found = tuple(each.replace(f"{tmp_path}/", "") for each in error.problems)
        return found

    return refresh


def problems(lists: Lists) -> list[str]:
    """Those that refuse the start."""
    with pytest.raises(ListError) as caught:
        PolicyFiles(lists)
    return [*caught.value.problems]


def said(policy: Policy, text: str, client: str = "192.0.2.7") -> reply.Reply:
    """What RCPT is answered with, where nothing may be asked."""

    def nobody(question: Question) -> Answer:
        raise AssertionError(question)

    return decide(policy, mailbox(text), client, nobody).reply


def mailbox(text: str) -> Mailbox:
    local, _, domain = text.rpartition("@")
    return Mailbox(local, domain)


# At the start


def test_all_that_the_lists_say_is_in_the_policy(write: Write) -> None:
    files = PolicyFiles(
        Lists(
            domains=("x.example", write("domains", "# ours\n.Y.example\nb\u00fccher.example\n")),
            own_domain="mx.example",
            asks_domains=True,
            recipients=("ann", write("users", "Bob@X.example\n"), write("more", "@y.example\n")),
            asks_recipients=True,
            unknown=Unknown.DEFER,
            plus_tags=True,
            aliases=write("aliases", "info: ann\n")[1:],
            always=("abuse",),
            allow=("192.0.2.7", write("friends", "2001:db8::/32\n")),
            deny=(write("foes", "192.0.2.0/24\n"),),
            asks_clients=True,
        )
    )
    policy = files.current
    patterns = [policy.domains.match(each) for each in ("x.example", "a.y.example", "z.example")]
    assert patterns == ["x.example", ".y.example", ""]
    assert policy.domains.match("b\u00fccher.example") == "xn--bcher-kva.example"
    assert len(policy.recipients) == 3
    assert policy.recipients.match("bob", "x.example") == "bob@x.example"
    assert policy.aliases is not None and policy.aliases.exact("info", "x.example")
    assert policy.allow.match("2001:db8::1") and policy.deny.match("192.0.2.1")
    assert policy.denies("192.0.2.7") == "" != policy.denies("192.0.2.8")
    assert (policy.own_domain, policy.unknown) == ("mx.example", Unknown.DEFER)
    assert policy.always == {"abuse"}
    assert policy.asks_domains and policy.asks_recipients and policy.asks_clients
    assert policy.has_recipients and policy.plus_tags


def test_without_files_there_is_nothing_to_look_at() -> None:
    files = PolicyFiles(Lists(domains=("x.example",)))
    policy = files.current
    assert files.paths == []
    files.refresh()
    assert files.current is policy
    assert policy.by_domain_alone


def test_each_file_is_named_once(write: Write) -> None:
    both = write("networks", "192.0.2.0/24\n")
    aliases = write("aliases", "")[1:]
    lists = Lists(domains=("*",), allow=(both, both), deny=("10.0.0.0/8", both), aliases=aliases)
    assert PolicyFiles(lists).paths == [both[1:], aliases]


def test_an_empty_list_of_recipients_knows_nobody(write: Write) -> None:
    lists = Lists(domains=("x.example",), recipients=(write("users", "# none yet\n"),))
    policy = PolicyFiles(lists).current
    assert said(policy, "ann@x.example") == NO_SUCH_USER
    assert said(policy, "abuse@x.example") == OK
    assert said(PolicyFiles(Lists(domains=("x.example",))).current, "ann@x.example") == OK


def test_all_that_is_wrong_in_all_files_is_said(write: Write, tmp_path: Path) -> None:
    lists = Lists(
        domains=(write("domains", "x.example\na..b\n"),),
        recipients=(write("users", "ann\n\nb@c@d\n"),),
        deny=(write("foes", "192.0.2.300\n"), f"@{tmp_path}/none"),
        aliases=write("aliases", "ann: bob\nann carl\n")[1:],
    )
    found = problems(lists)
    starts = [
        f"{tmp_path}/{each}: " for each in ("domains:2", "users:3", "foes:1", "none", "aliases:2")
    ]
    assert [problem.startswith(start) for problem, start in zip(found, starts, strict=True)] == [
        True
    ] * 5


@pytest.mark.parametrize(
    ("aliases", "wrong"),
    [
        ("ann: bob@x.example, carl@z.example\n", [1]),
        ("ann: bob\n@x.example: carl@sub.x.example\n", [2]),
        ("ann: bob@y.example, carl@b.y.example\n", []),
        ("a@z.example: b\n", [1]),
        ("a: b\nb: c\nc: d@z.example\n", [3]),
    ],
)
def test_targets_are_in_served_domains(
    write: Write, tmp_path: Path, aliases: str, wrong: list[int]
) -> None:
    path = write("aliases", aliases)[1:]
    domains = ("x.example", write("domains", ".y.example\n"))
    # Where the database may know more domains, nobody can tell before they are asked for.
    PolicyFiles(Lists(domains=domains, aliases=path, asks_domains=True))
    if not wrong:
        PolicyFiles(Lists(domains=domains, aliases=path))
        return
    found = problems(Lists(domains=domains, aliases=path))
    assert [each.partition(": ")[0] for each in found] == [f"{path}:{line}" for line in wrong]
    assert all("is not in a served domain" in each for each in found)


def test_an_alias_leads_to_no_more_mailboxes_than_a_message_may_have(write: Write) -> None:
    path = write("aliases", "ann: a, b, c\n")[1:]
    PolicyFiles(Lists(domains=("*",), aliases=path, most_copies=3))
    (problem,) = problems(Lists(domains=("*",), aliases=path, most_copies=2))
    assert "leads to 3 mailboxes" in problem


# Where does it say so?


def test_the_source_of_a_reason(write: Write) -> None:
    users, aliases = write("users", "# all\nAnn@X.example\n"), write("aliases", "# \ninfo: ann\n")
    more = write("more", "carl\nann@x.example\n")
    files = PolicyFiles(
        Lists(
            domains=("x.example",),
            recipients=("bob", users, more),
            aliases=aliases[1:],
        )
    )

    def sources(text: str) -> list[tuple[str, int]]:
        found = explain(files.current, mailbox(text), "192.0.2.7", lambda _: None)
        return [files.source(reason) for reason in found.reasons]

    inline = ("", 0)
    assert sources("ann@x.example") == [inline, (users[1:], 2)]
    assert sources("carl@x.example") == [inline, (more[1:], 1)]
    assert sources("bob@x.example") == [inline, inline]
    assert sources("info@x.example") == [inline, (aliases[1:], 2)]
    assert sources("eve@x.example") == [inline] * 3
    write("more", "carl\nBOB\n")
    assert sources("bob@x.example") == [inline, inline]  # it would be known without the file
    assert files.source(Reason(Rule.DNSBL, "whatever", "zen.example.org")) == inline


# While it runs


def changing(write: Write, **changes: Any) -> PolicyFiles:
    """Whose domains are in the file "domains": x.example."""
    return PolicyFiles(Lists(domains=(write("domains", "x.example\n"),), **changes))


def test_a_change_is_taken_over_and_nothing_else(write: Write, refresh: Refresh) -> None:
    files = changing(write)
    before = files.current
    assert refresh(files) == ()
    assert files.current is before
    write("domains", "y.example\n")
    files.refresh()
    assert files.current is before  # it may be half written still
    files.refresh()
    assert said(files.current, "ann@y.example") == OK
    assert said(files.current, "ann@x.example") == NOT_SERVED
    # Who decides by now is not disturbed.
    assert said(before, "ann@x.example") == OK
    after = files.current
    assert refresh(files) == ()
    assert files.current is after


def test_a_mistake_changes_nothing_until_it_is_mended(write: Write, refresh: Refresh) -> None:
    files = changing(write)
    before = files.current
    write("domains", "y.example\nx..example\n")
    (problem,) = refresh(files)
    assert problem.startswith("domains:2: ")
    assert files.current is before
    assert refresh(files) == (problem,)
    write("domains", "x,example\n")
    (other,) = refresh(files)
    assert other.startswith("domains:1: ")
    assert files.current is before
    write("domains", "z.example\n")
    assert refresh(files) == ()
    assert said(files.current, "ann@z.example") == OK


def test_a_file_that_is_gone_stays_in_force(write: Write, refresh: Refresh, tmp_path: Path) -> None:
    files = changing(write, recipients=(write("users", "ann\n"),))
    before = files.current
    (tmp_path / "domains").unlink()
    assert refresh(files) == ("domains: the file is gone",)
    assert files.current is before
    write("users", "bob\n")  # cannot be used alone: the rest of the policy is not there
    (problem,) = refresh(files)
    assert problem.startswith("domains: there is no such file")
    assert files.current is before
    write("domains", "y.example\n")
    assert refresh(files) == ()
    assert [said(files.current, each) for each in ("bob@y.example", "ann@y.example")] == [
        OK,
        NO_SUCH_USER,
    ]


def test_a_file_that_comes_back_as_it_was(write: Write, refresh: Refresh, tmp_path: Path) -> None:
    files = changing(write)
    before = files.current
    (tmp_path / "domains").rename(tmp_path / "away")
    assert refresh(files) == ("domains: the file is gone",)
    (tmp_path / "away").rename(tmp_path / "domains")
    assert refresh(files) == ()
    assert files.current is before


def test_a_file_may_be_replaced_by_another(write: Write, refresh: Refresh, tmp_path: Path) -> None:
    files = changing(write)
    write("new", "y.example\n")
    (tmp_path / "new").rename(tmp_path / "domains")
    assert refresh(files) == ()
    assert said(files.current, "ann@y.example") == OK


def test_a_domain_that_aliases_lead_to_cannot_go_alone(write: Write, refresh: Refresh) -> None:
    aliases = write("aliases", "ann: bob@x.example\n")[1:]
    files = changing(write, aliases=aliases)
    before = files.current
    write("domains", "y.example\n")
    (problem,) = refresh(files)
    assert problem.startswith('aliases:1: "bob@x.example" is not in a served domain')
    assert files.current is before
    write("aliases", "ann: bob@y.example\n")
    assert refresh(files) == ()
    decision = explain(files.current, mailbox("ann@y.example"), "", lambda _: None)
    assert decision.mailboxes == (Mailbox("bob", "y.example"),)


def test_every_list_follows_its_file(write: Write, refresh: Refresh) -> None:
    files = changing(
        write,
        recipients=(write("users", "ann\n"),),
        aliases=write("aliases", "info: ann\n")[1:],
        allow=(write("friends", ""),),
        deny=(write("foes", "192.0.2.0/24\n"),),
    )
    assert said(files.current, "ann@x.example") == reply.CLIENT_DENIED
    write("friends", "192.0.2.7\n")
    assert refresh(files) == ()
    assert said(files.current, "ann@x.example") == OK
    assert said(files.current, "eve@x.example") == NO_SUCH_USER
    write("aliases", "eve: ann\n")
    assert refresh(files) == ()
    assert said(files.current, "eve@x.example") == OK
    assert said(files.current, "info@x.example") == NO_SUCH_USER
    write("users", "bob\n")
    write("foes", "192.0.2.9\n")
    assert refresh(files) == ()
    assert said(files.current, "bob@x.example", "192.0.2.8") == OK
    assert said(files.current, "bob@x.example", "192.0.2.9") == reply.CLIENT_DENIED


# The chore


def test_trouble_and_its_end_are_logged_once(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    upkeep = PolicyUpkeep(changing(write))

    def look() -> list[str]:
        caplog.clear()
        assert {upkeep.step() for _ in range(5)} == {LOOK}
        return [message.replace(f"{tmp_path}/", "") for message in caplog.messages]

    assert look() == []
    write("domains", "a..b\nc..d\n")
    (line,) = look()
    assert line.startswith("lists: domains:1: ")
    assert "; domains:2: " in line
    assert line.endswith("; what was read before stays in force")
    assert look() == []
    write("domains", "e..f\n")
    (line,) = look()
    assert '"e..f"' in line
    write("domains", "y.example\n")
    assert look() == ["lists: it works again"]
    assert look() == []
    (tmp_path / "domains").unlink()
    assert look() == ["lists: domains: the file is gone; what was read before stays in force"]
    assert look() == []
    write("domains", "y.example\n")
    assert look() == ["lists: it works again"]
    upkeep.close()
