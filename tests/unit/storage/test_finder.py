"""Does one thread get a Finder of the configured store, and is mail deleted with all it has?"""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from gsmtpd.app_store import make_finder
from gsmtpd.config import Config, load
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from tests.mailtable import MailTable, asked, reads_too_much
from tests.servers import MariaDB, free_port, mysql_store, render, wait_for


def configured(path: Path, settings: dict[str, object]) -> Config:
    conf = path / "gsmtpd.conf"
    conf.write_text(render(settings))
    return load(str(conf), environ={})


def on_sqlite(path: Path) -> Config:
    return configured(path, {"store": {"sqlite": {"path": str(path / "mail.db")}}})


def attach(table: MailTable, mail_id: int) -> None:
    for position in (1, 2):
        table.execute(
            "INSERT INTO mail_attachment (mail_id, position, filename, content_type, size, sha256)"
            f" VALUES ({mail_id}, {position}, 'a', '', 1, '')"
        )


def test_a_mail_goes_with_its_attachments(table: MailTable, finder: Finder) -> None:
    for number in (1, 2, 3):
        table.insert()
        attach(table, number)
    assert finder.delete(2) is True
    assert finder.delete(2) is False
    assert finder.delete(99) is finder.delete(2**70) is finder.delete(-1) is False
    assert [mail.mail_id for mail in finder.reader.recent(9)] == [1, 3]
    assert [len(finder.reader.attachments(number)) for number in (1, 2, 3)] == [2, 0, 2]


def test_a_mail_is_deleted_while_others_write(table: MailTable, finder: Finder) -> None:
    """Whoever holds the lock for long is waited for."""
    table.insert()
    other = table.connect()
    table.execute("BEGIN" if not table.is_sqlite else "BEGIN IMMEDIATE", on=other)
    table.execute("UPDATE new_mail SET subject = 'y'", on=other)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(table.finder().delete(1)))
    thread.start()
    thread.join(1.5)
    assert thread.is_alive()
    table.execute("COMMIT", on=other)
    thread.join(30)
    assert done == [True]
    other.close()


@pytest.mark.parametrize(
    ("stored", "address"),
    [
        ("\xc9cole@example.com", "\xe9COLE@EXAMPLE.com"),
        ("\xe9cole@example.com", "\xc9cole@example.com"),
        ("\xc9COLE@example.com", "\xe9cole@example.com"),
        ("\xe9c\xd4le@example.com", "\xe9c\xf4le@example.com"),
        ("ecole@example.com", "\xe9cole@example.com"),
        ("\u212aate@example.com", "kate@example.com"),
        ("KATE@example.com", "kate@EXAMPLE.com"),
        ("stra\xdfe@example.com", "STRASSE@example.com"),
    ],
)
def test_what_is_for_an_address_is_what_is_found(
    table: MailTable, finder: Finder, stored: str, address: str
) -> None:
    """Who waits is told of mail that comes just if it would have been found, had it been there."""
    table.insert(recipient=stored, to=stored)
    (mail,) = finder.reader.recent(1)
    found, _ = finder.next_for(address)
    assert finder.is_for(mail, address) is (found is not None)
    small_and_large = {stored[:5].lower(), address[:5].lower()} == {"\xe9cole"}
    assert found or not small_and_large


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="backend = null keeps no mail"):
        make_finder(configured(tmp_path, {"store": {"backend": "null"}}))
    with pytest.raises(StoreError, match="no mail file yet"):
        make_finder(on_sqlite(tmp_path))


def test_the_configured_file(tmp_path: Path) -> None:
    table = MailTable(tmp_path / "mail.db")
    table.insert(to="b@example.com")
    with closing(make_finder(on_sqlite(tmp_path))) as finder:
        finder.ping()
        mail, _ = finder.next_for("b@example.com")
        assert mail is not None
        assert finder.delete(mail.mail_id)
        assert finder.reader.recent(1) == []
    table.close()


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_is_replaced(tmp_path: Path, gone: bool) -> None:
    """What is asked of it would be old mail for ever."""
    MailTable(tmp_path / "mail.db").close()
    with closing(make_finder(on_sqlite(tmp_path))) as finder:
        tail = finder.tail()
        os.rename(tmp_path / "mail.db", tmp_path / "old.db")
        if not gone:
            MailTable(tmp_path / "mail.db").close()
        for ask in (finder.ping, tail.look, lambda: finder.next_for("b@example.com")):
            with pytest.raises(StoreError, match="the file is gone, or another has taken"):
                ask()


def test_the_configured_table(mariadb: MariaDB, schema: str, tmp_path: Path) -> None:
    table = MailTable((mariadb, schema))
    table.insert(to="b@example.com")
    with closing(make_finder(configured(tmp_path, mysql_store(mariadb, schema)))) as finder:
        finder.ping()
        assert finder.delete(1)
        table.execute("DROP TABLE new_mail")
        with pytest.raises(StoreError, match="there is no table 'new_mail'"):
            finder.tail()
    table.close()


def test_no_host_is_tried_by_who_has_given_up(
    mariadb: MariaDB, schema: str, tmp_path: Path
) -> None:
    """A Finder is made anew again and again while the database is away."""
    away = configured(tmp_path, mysql_store(mariadb, schema, host=f"127.0.0.1:{free_port()}"))
    before = set(threading.enumerate())  # with those of other tests
    for _ in range(5):
        with pytest.raises(StoreError, match="no database server answers"):
            make_finder(away)
    wait_for(lambda: not [t for t in new_since(before) if t.name.startswith("probe-")])


def new_since(before: set[threading.Thread]) -> set[threading.Thread]:
    """The threads that were started since then."""
    return set(threading.enumerate()) - before


def test_an_older_file_gets_indexes(tmp_path: Path) -> None:
    """One that compares addresses with their capitals; a new one needs none."""
    older, newer = MailTable(tmp_path / "mail.db"), MailTable(tmp_path / "new.db")
    assert _indexes(newer) == {"new_mail_to", "new_mail_recipient"}
    newer.close()
    columns = older.connection.execute("SELECT sql FROM sqlite_master WHERE name = 'new_mail'")
    made = columns.fetchone()[0].replace(" COLLATE NOCASE", "")
    older.execute("DROP TABLE new_mail")
    older.execute(made)
    older.execute("CREATE INDEX new_mail_recipient ON new_mail (recipient)")
    older.execute("PRAGMA user_version = 20")
    older.insert(to="Bob@example.com")
    with closing(make_finder(on_sqlite(tmp_path))) as finder, asked(finder.reader) as heard:
        assert finder.next_for("bob@example.com")[0] is not None
        for sql, values in heard:
            assert not reads_too_much(finder.reader, sql, values)
    assert _indexes(older) >= {"new_mail_to_nocase", "new_mail_recipient_nocase"}
    older.close()


def _indexes(table: MailTable) -> set[str]:
    """Those on addresses."""
    sql = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'new_mail'"
    names = {name for (name,) in table.connection.execute(sql)}
    return {name for name in names if "_to" in name or "_recipient" in name}
