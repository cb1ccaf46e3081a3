"""How is the fault lab furnished with a Galera cluster instead of a single database?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pymysql

from gsmtpd.faultlab.galera import Galera, GaleraNode
from gsmtpd.faultlab.lab import USER, Lab, address_of, furnish
from gsmtpd.faultlab.processes import ServerError
from gsmtpd.faultlab.stored import StoredRow, mysql_rows


class GaleraLab(Lab):
    """Three nodes, which gsmtpd knows all of; no proxy stands before them."""

    def _install(self) -> None:
        self.galera = self._stack.enter_context(Galera())
        furnish(self.galera.nodes[0])
        self.host = self.galera.hosts
        self._install_gsmtpd()

    def in_use(self) -> GaleraNode:
        """The node that gsmtpd's writers are connected to. Raises ServerError if there is none."""
        users: dict[int, GaleraNode] = {}
        for node in self.galera.nodes:
            with contextlib.suppress(pymysql.MySQLError):
                ((number,),) = node.query(
                    "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s", (USER,)
                )
                users[number] = users.get(number, node)
        if not any(users):
            raise ServerError("gsmtpd is connected to no node")
        return users[max(users)]

    def rows(self) -> Iterator[StoredRow]:
        yield from mysql_rows([address_of(self.galera.nodes[0])])

    def mend(self) -> None:
        self.galera.restore()
        self._mend_gsmtpd()
