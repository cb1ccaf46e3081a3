"""Does the checker of the fault lab find each kind of wrong, and nothing where nothing is wrong?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.check import VIOLATIONS, Report, check, percentiles
from gsmtpd.faultlab.ledger import LedgerError
from gsmtpd.faultlab.mails import Mail, Mails
from gsmtpd.faultlab.stored import StoredRow

RUN = "1a2b"
OWN = [f"fl-{RUN}-{n}@example.com" for n in range(4)]


class Book:
    """A ledger as a sender would write it, step by step."""

    def __init__(self, directory: Path, run: str = RUN) -> None:
        self.number, file = ledger.create(directory)
        self.writer = ledger.Writer(file)
        self.mails = Mails(run, 7, self.number, OWN, 2000)
        self.next = 0
        self.writer.other(
            "run", format=1, run=run, sender=self.number, seed=7, own=True, recipients=OWN
        )

    def mail(self) -> Mail:
        mail = self.mails.mail(self.next)
        self.next += 1
        digest = sha256(mail.content).hexdigest()
        self.writer.mail(mail.uid, 1.0, mail.to, len(mail.content), digest)
        return mail

    def dot(self, mail: Mail) -> None:
        mail.attempt += 1
        self.writer.dot(mail.uid, mail.attempt, 1.0)

    def said(self, mail: Mail, number: int, seconds: float = 0.01) -> None:
        """Acknowledged, with that id."""
        self.dot(mail)
        text = f"250 2.0.0 OK: queued as {number:032x}"
        self.writer.reply(mail.uid, mail.attempt, "dot", 250, text, seconds, 1.0)

    def answered(self, mail: Mail, code: int, phase: str = "dot") -> None:
        self.dot(mail)
        self.writer.reply(mail.uid, mail.attempt, phase, code, f"{code} no", 0.01, 1.0)

    def lost(self, mail: Mail, phase: str = "dot") -> None:
        self.dot(mail)
        self.writer.lost(mail.uid, mail.attempt, phase, "reset", 1.0)

    def several(self) -> Mail:
        """The next mail that is for more than one."""
        while len((mail := self.mail()).to) < 2:
            self.said(mail, 10_000 + self.next)
            self.also += rows(10_000 + self.next, mail)
        return mail

    also: list[StoredRow] = []


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    made.also = []
    yield made
    made.writer.close()


def rows(number: int, mail: Mail, *recipients: str) -> list[StoredRow]:
    """The rows of `mail` as they should be, or for these recipients."""
    digest = sha256(mail.content).hexdigest()
    return [
        StoredRow(
            f"{number:032x}",
            to,
            f"Delivered-To: {to}\r\n".encode() + mail.content,
            len(mail.content),
            digest,
        )
        for to in recipients or mail.to
    ]


def judged(book: Book, found: list[StoredRow]) -> Report:
    book.writer.sync()
    return check(ledger.files(_directory(book)), iter(book.also + found))


def _directory(book: Book) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{book.writer._file}")).parent


def only(report: Report, kind: str, number: int = 1) -> None:
    """This one violation, so many times, is all that was found."""
    assert {name: getattr(report, name) for name in VIOLATIONS if getattr(report, name)} == {
        kind: number
    }
    assert report.violations == number
    assert any(line.startswith(f"{kind}: ") for line in report.examples)


def test_nothing_is_wrong(book: Book) -> None:
    first, second = book.mail(), book.mail()
    book.said(first, 1)
    book.said(second, 2, 0.5)
    report = judged(book, rows(2, second) + rows(1, first))
    assert report.violations == 0 and report.examples == ()
    assert (report.mails, report.attempts, report.acknowledged, report.stored) == (2, 2, 2, 2)
    assert report.rows == len(first.to) + len(second.to)
    assert (report.p50, report.p99, report.max) == (0.01, 0.5, 0.5)
    assert json.loads(json.dumps(report.as_dict()))["violations"] == 0
    assert "violations: 0" in [*report.lines()]


def test_lost(book: Book) -> None:
    mail, other = book.mail(), book.mail()
    book.said(mail, 1)
    book.said(other, 2)
    report = judged(book, rows(2, other))
    only(report, "lost")
    assert mail.uid in report.examples[0] and f"{1:032x}" in report.examples[0]


def test_stored_under_another_id_than_was_said_is_lost_and_a_copy_too_many(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    report = judged(book, rows(2, mail))
    assert report.lost == 1
    assert report.unexplained_duplicates == 0  # there is one acknowledged, and one copy


def test_one_octet_is_another(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    found = [row._replace(mail=row.mail.replace(b"Fault lab", b"fault lab", 1)) for row in
             rows(1, mail) if row.mail]  # fmt: skip
    only(judged(book, found), "altered")


@pytest.mark.parametrize("end", [b"\r\n", b" "])
def test_more_or_fewer_octets(book: Book, end: bytes) -> None:
    mail = book.mail()
    book.said(mail, 1)
    found = rows(1, mail)
    only(judged(book, [row._replace(mail=(row.mail or b"") + end) for row in found]), "altered")
    only(judged(book, [row._replace(mail=(row.mail or b"")[:-2]) for row in found]), "altered")


def test_the_mail_of_another(book: Book) -> None:
    mail, other = book.mail(), book.mail()
    book.said(mail, 1)
    book.said(other, 2)
    found = [row._replace(mail=other.content) for row in rows(1, mail)]
    only(judged(book, found + rows(2, other)), "altered")


@pytest.mark.parametrize("wrong", [{"size": 3}, {"content_hash": "0" * 64}])
def test_a_row_that_contradicts_itself(book: Book, wrong: dict[str, str | int]) -> None:
    mail = book.mail()
    book.said(mail, 1)
    found = [row._replace(**wrong) for row in rows(1, mail)]
    only(judged(book, found), "altered")


def test_a_table_without_size_and_content_hash(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    found = [row._replace(size=None, content_hash=None) for row in rows(1, mail)]
    assert judged(book, found).violations == 0


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_recipient_is_missing(book: Book, acknowledged: bool) -> None:
    mail = book.several()
    if acknowledged:
        book.said(mail, 1)
    else:
        book.lost(mail)
    only(judged(book, rows(1, mail)[1:]), "partial")


def test_a_recipient_twice(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    only(judged(book, rows(1, mail) + rows(1, mail)[:1]), "partial")


def test_a_recipient_too_many(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    only(judged(book, rows(1, mail) + rows(1, mail, "x@example.com")), "partial")


def test_a_recipient_in_capitals(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    found = [row._replace(recipient=row.recipient.upper()) for row in rows(1, mail)]
    assert judged(book, found).violations == 0


def test_what_nobody_sent(book: Book, tmp_path: Path) -> None:
    mail = book.mail()
    book.said(mail, 1)
    unsent = book.mails.mail(99)
    mangled = StoredRow("2" * 32, OWN[0], b"nothing of ours\r\n")
    other_run = Mails("ffff", 7, 0, ["x@example.com"], 2000).mail(0)
    found = rows(1, mail) + rows(3, unsent, "joe@example.com") + [mangled] + rows(4, other_run)
    report = judged(book, [*found, StoredRow("abc", "joe@example.com", b"Subject: hello\r\n")])
    only(report, "foreign", 2)
    assert report.others == 2


def test_an_id_that_is_said_twice(book: Book) -> None:
    mail, other = book.mail(), book.mail()
    book.said(mail, 1)
    book.said(other, 1)
    report = judged(book, rows(1, mail))
    assert report.same_id == 1
    assert report.violations >= 1


@pytest.mark.parametrize("code", [550, 554])
@pytest.mark.parametrize("phase", ["mail", "dot"])
def test_refused_for_good(book: Book, code: int, phase: str) -> None:
    mail = book.mail()
    book.answered(mail, code, phase)
    report = judged(book, [])
    only(report, "refused_for_good")
    assert report.unacknowledged == 1


def test_a_session_is_refused_for_good(book: Book) -> None:
    book.writer.other("turned_away", code=554, text="554 no", at=1.0)
    book.writer.other("turned_away", code=421, text="421 later", at=1.0)
    report = judged(book, [])
    only(report, "refused_for_good")
    assert report.turned_away == 2


def test_stored_though_refused_for_good(book: Book) -> None:
    mail = book.mail()
    book.answered(mail, 554)
    report = judged(book, rows(1, mail))
    assert (report.refused_for_good, report.unexplained_duplicates) == (1, 1)


def test_copies_in_doubt(book: Book) -> None:
    mail = book.mail()
    book.lost(mail)
    book.said(mail, 2)
    report = judged(book, rows(1, mail) + rows(2, mail))
    assert report.violations == 0
    assert (report.duplicates, report.duplicates_after_4xx, report.in_doubt) == (1, 0, 1)


def test_a_copy_after_a_4xx_is_told_apart(book: Book) -> None:
    mail = book.mail()
    book.answered(mail, 451)
    book.said(mail, 2)
    report = judged(book, rows(1, mail) + rows(2, mail))
    assert report.violations == 0
    assert (report.duplicates, report.duplicates_after_4xx) == (1, 1)


@pytest.mark.parametrize("phase", ["mail", "data"])
def test_what_was_lost_before_its_end_explains_no_copy(book: Book, phase: str) -> None:
    mail = book.mail()
    book.lost(mail, phase)
    book.said(mail, 2)
    only(judged(book, rows(1, mail) + rows(2, mail)), "unexplained_duplicates")


def test_a_4xx_to_the_envelope_explains_no_copy(book: Book) -> None:
    mail = book.mail()
    book.answered(mail, 451, "mail")
    book.said(mail, 2)
    only(judged(book, rows(1, mail) + rows(2, mail)), "unexplained_duplicates")


def test_a_copy_without_any_doubt(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    only(judged(book, rows(1, mail) + rows(2, mail)), "unexplained_duplicates")


def test_two_copies_of_one_doubt(book: Book) -> None:
    mail = book.mail()
    book.lost(mail)
    report = judged(book, rows(1, mail) + rows(2, mail) + rows(3, mail))
    only(report, "unexplained_duplicates", 2)


def test_stored_and_its_sender_never_heard(book: Book) -> None:
    mail = book.mail()
    book.lost(mail)
    report = judged(book, rows(1, mail))
    assert report.violations == 0
    assert (report.unheard, report.duplicates, report.unacknowledged) == (1, 0, 1)


def test_acknowledged_without_an_id(book: Book) -> None:
    mail, other = book.mail(), book.mail()
    for one in (mail, other):
        book.dot(one)
        book.writer.reply(one.uid, 1, "dot", 250, "250 thank you", 0.1, 1.0)
    only(judged(book, rows(1, mail)), "lost")


def test_octets_that_are_elsewhere(book: Book) -> None:
    mail = book.mail()
    book.said(mail, 1)
    found = [row._replace(mail=None, kept="redis") for row in rows(1, mail)]
    report = judged(book, found)
    assert report.violations == 0
    assert report.unreadable == len(mail.to)
    assert any("not compared" in line for line in report.lines())


def test_a_sender_that_was_killed(book: Book, tmp_path: Path) -> None:
    mail = book.mail()
    book.dot(mail)  # and then nothing more: it may be stored
    book.writer.sync()
    path = tmp_path / "sender-0.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step":"reply","id":"1a2b-0-0","code":2')
    report = judged(book, rows(1, mail))
    assert report.violations == 0
    assert (report.torn, report.in_doubt, report.attempts, report.unheard) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b'{"step":1}\n',
        b'{"step":"mail","id":"1a2b-0-7","to":["x"],"size":1,"sha256":""}\n',  # not in its order
        b'{"step":"dot","id":"1a2b-0-7","attempt":1}\n',  # no such mail
        b'{"step":"dot"}\n',
        b'{"step":"run","run":"1","sender":0,"format":2}\n',
    ],
)
def test_what_is_no_ledger(book: Book, tmp_path: Path, line: bytes) -> None:
    book.writer.sync()
    with (tmp_path / "sender-0.jsonl").open("ab") as file:
        file.write(line)
    with pytest.raises(LedgerError, match=r"sender-0\.jsonl"):
        judged(book, [])


def test_several_ledgers_and_runs(tmp_path: Path) -> None:
    books = [Book(tmp_path), Book(tmp_path), Book(tmp_path, "ffff")]
    found: list[StoredRow] = []
    for number, book in enumerate(books):
        mails = [book.mail() for _ in range(3)]
        for place, mail in enumerate(mails):
            book.said(mail, 10 * number + place)
            found += rows(10 * number + place, mail)
        book.writer.close()
    assert [path.name for path in ledger.files(tmp_path)] == [f"sender-{n}.jsonl" for n in range(3)]
    report = check(ledger.files(tmp_path), iter(found))
    assert (report.violations, report.stored, report.acknowledged) == (0, 9, 9)
    assert check(ledger.files(tmp_path), iter(found[len(found) // 2 :])).lost > 0


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        ledger.files(tmp_path / "none")


def test_percentiles() -> None:
    assert percentiles([]) == (0.0, 0.0, 0.0)
    assert percentiles([float(n) for n in range(101)]) == (50.0, 99.0, 100.0)
    assert percentiles([3.0]) == (3.0, 3.0, 3.0)
