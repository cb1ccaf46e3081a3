"""Is the first host that comes back used, while the others are still away?"""

from __future__ import annotations

from gsmtpd.faultlab.mysql_proxy import MySQLProxy
from tests.accounting import Ledger, MySQLTable, rows, send, with_token
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for


def test_the_first_host_that_is_back_is_used() -> None:
    """A writer whose connection was given up while no host could be had finds one later."""
    with MariaDB() as one, MariaDB() as other, MySQLProxy(other.address) as proxy:
        for server in (one, other):
            make_schema(server, "mail")
            server.query("CREATE USER writer@'127.0.0.1' IDENTIFIED BY 'secret'")
            server.query("GRANT SELECT, INSERT ON mail.* TO writer@'127.0.0.1'")
        hosts = f"127.0.0.1:{one.port}, 127.0.0.1:{proxy.port}"
        settings = mysql_store(one, "mail", host=hosts, user="writer", password="secret")
        with Gsmtpd(settings) as daemon:
            ledger = Ledger()

            def deliver() -> int:
                mail = with_token()
                (reply,) = send(daemon.address, mail)
                ledger.note(mail, reply, True)
                return reply.code

            assert deliver() == 250
            proxy.refuse()
            one.query("SET GLOBAL read_only = 1")
            assert deliver() == 451
            proxy.heal()
            wait_for(lambda: deliver() == 250)
            stored = rows(MySQLTable(other, "mail"))
            assert len(stored) == 1
            ledger.check(stored + rows(MySQLTable(one, "mail")))
