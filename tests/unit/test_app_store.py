"""Does what is built from a Config follow the database?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gsmtpd import app, app_mysql
from gsmtpd.config import load
from gsmtpd.smtp.rules import Rules


def test_the_largest_message_is_that_of_the_host_in_use() -> None:
    """Not of the smallest that ever was: its clients would hear 552 until a restart."""
    server: Any = SimpleNamespace(rules=Rules("mx.example.com", max_size=1000))
    said = []
    for size in (5000, 300, 700, 5000):
        app._limit_size([server], 1000, False, size)
        said.append(server.rules.max_size)
    assert said == [1000, 300, 700, 1000]


def test_a_host_that_is_named_twice_is_one(tmp_path: Path) -> None:
    """Else not all hosts would ever be away, and nothing would be spooled."""
    conf = tmp_path / "gsmtpd.conf"
    conf.write_text("[store]\nbackend = mysql\n[[mysql]]\nhost = db1, db2, db1:3306\n")
    database = app_mysql.make_database(load(str(conf), environ={}))
    assert [str(host) for host in database.hosts] == ["db1:3306", "db2:3306"]
