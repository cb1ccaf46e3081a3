"""Is a connection made to a server that has TLS, too, and at no cost of it?"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing

import pytest

from gsmtpd.storage.mysql_connection import CONNECT_TIMEOUT, Database, Host, connect_to
from tests.certificates import Authority
from tests.servers import MariaDB


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    pair = Authority(tmp_path_factory.mktemp("tls")).pair("localhost", kind="ecdsa")
    with MariaDB(options=[f"--ssl-cert={pair.certificate}", f"--ssl-key={pair.key}"]) as server:
        assert server.query("SELECT @@have_ssl") == [("YES",)]
        server.create_database("mail")
        yield server


@pytest.mark.parametrize("over_tcp", [False, True], ids=["socket", "tcp"])
def test_it_is_connected_to(
    secure: MariaDB, over_tcp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("reads all certificates of the system")

    monkeypatch.setattr(ssl, "create_default_context", read)
    host = Host(*secure.address) if over_tcp else Host("localhost", 3306, str(secure.socket))
    database = Database((host,), secure.user, secure.password, "mail")
    with closing(connect_to(host, database, CONNECT_TIMEOUT)) as connection:
        connection.execute(b"DO ?", b"\xfe\0", [b"\1x"])  # a prepared statement
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == ((1,),)
