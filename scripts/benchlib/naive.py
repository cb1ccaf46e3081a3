"""What does one write in Python in an afternoon that puts mail into MySQL safely?

Two programs, each in several processes that accept from one socket: `aiosmtpd` (the library of that
name, the store in a pool of threads), and `socketserver` (the standard library's, with a thread for
each connection and SMTP by hand). Mail is kept by one INSERT and one COMMIT for each message, over
connections that stay open, and 250 follows the COMMIT. Without --socket nothing is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import socket
import socketserver
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

STORE_THREADS = 4
"""Connections of a process: of 2, 4, 8, 16 and 32 the one with the most messages/s."""
BACKLOG = 4096  # as gsmtpd's
TABLE = """CREATE TABLE mail (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    received TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    peer VARCHAR(64) NOT NULL,
    sender VARCHAR(320) NOT NULL,
    recipients TEXT NOT NULL,
    message LONGBLOB NOT NULL
) ENGINE=InnoDB"""
INSERT = "INSERT INTO mail (peer, sender, recipients, message) VALUES (%s, %s, %s, %s)"

Row = tuple[str, str, str, bytes]


class Pool:
    """The connections of a process, each opened when it is first needed."""

    def __init__(self, socket_path: str, database: str, size: int) -> None:
        self._options: dict[str, Any] = {
            "unix_socket": socket_path,
            "user": "root",
            "database": database,
        }
        self._free: queue.LifoQueue[Connection[Cursor] | None] = queue.LifoQueue()
        for _ in range(size):
            self._free.put(None)

    def insert(self, row: Row) -> None:
        """One INSERT and one COMMIT, by a connection that nobody else uses meanwhile."""
        connection = self._free.get()
        try:
            if connection is None:
                connection = pymysql.connect(**self._options)
            with connection.cursor() as cursor:
                cursor.execute(INSERT, row)
            connection.commit()
        finally:
            self._free.put(connection)


# --- aiosmtpd -------------------------------------------------------------------------------------


class Handler:
    """Takes every message; the event loop is never blocked by the store."""

    def __init__(self, pool: Pool | None, threads: int) -> None:
        self._pool = pool
        self._threads = ThreadPoolExecutor(threads, "store")

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """aiosmtpd asks this for the reply to the final dot."""
        if self._pool:
            row = (
                session.peer[0],
                envelope.mail_from,
                ",".join(envelope.rcpt_tos),
                envelope.original_content,
            )
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._pool.insert, row)
        return "250 2.0.0 OK"


async def _aiosmtpd(listener: socket.socket, pool: Pool | None, threads: int) -> None:
    from aiosmtpd.smtp import SMTP  # noqa: PLC0415

    def protocol() -> SMTP:
        return SMTP(handler, hostname="mx.example.com", ident="ESMTP", loop=loop)

    handler = Handler(pool, threads)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, sock=listener, backlog=BACKLOG)
    await server.serve_forever()


# --- socketserver ---------------------------------------------------------------------------------


class Session(socketserver.StreamRequestHandler):
    """One connection, in a thread of its own."""

    pool: Pool | None = None
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Speak SMTP until QUIT."""
        self._sender, self._recipients = "", list[str]()
        self._say("220 mx.example.com ESMTP")
        while line := self.rfile.readline(2048):
            verb, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            if verb.upper() == "QUIT":
                self._say("221 2.0.0 Bye")
                return
            self._command(verb.upper(), rest)

    def _command(self, verb: str, rest: str) -> None:
        if verb in ("EHLO", "HELO", "NOOP"):
            self._say("250 mx.example.com")
        elif verb == "RSET":
            self._sender, self._recipients = "", []
            self._say("250 2.0.0 OK")
        elif verb == "MAIL" and rest.upper().startswith("FROM:"):
            self._sender, self._recipients = _address(rest), []
            self._say("250 2.1.0 OK")
        elif verb == "RCPT" and rest.upper().startswith("TO:"):
            self._recipients.append(_address(rest))
            self._say("250 2.1.5 OK")
        elif verb == "DATA" and self._recipients:
            self._say("354 End data with <CR><LF>.<CR><LF>")
            self._data()
        else:
            self._say("503 5.5.1 What?")

    def _data(self) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                return
            lines.append(line[1:] if line.startswith(b".") else line)
        if self.pool:
            recipients = ",".join(self._recipients)
            self.pool.insert((self.client_address[0], self._sender, recipients, b"".join(lines)))
        self._recipients = []
        self._say("250 2.0.0 OK")

    def _say(self, reply: str) -> None:
        self.wfile.write(f"{reply}\r\n".encode())


def _address(path: str) -> str:
    return path.partition("<")[2].partition(">")[0]


class ThreadingServer(socketserver.ThreadingTCPServer):
    """A thread for each connection, on a socket that is there already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, session: type[Session] = Session) -> None:
        super().__init__(listener.getsockname(), session, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


# --- both -----------------------------------------------------------------------------------------


def main() -> None:
    """On 127.0.0.1, in several processes that accept from one socket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("aiosmtpd", "socketserver"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=STORE_THREADS, help="of the store")
    parser.add_argument("--socket", help="of MariaDB; without it nothing is kept")
    parser.add_argument("--database")
    chosen = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", chosen.port), backlog=BACKLOG)
    for _ in range(chosen.processes - 1):
        if os.fork() == 0:
            break
    pool = Pool(chosen.socket, chosen.database, chosen.threads) if chosen.socket else None
    if chosen.kind == "aiosmtpd":
        asyncio.run(_aiosmtpd(listener, pool, chosen.threads))
    else:
        # With several processes one may find that another was faster to accept.
        listener.setblocking(False)
        Session.pool = pool
        ThreadingServer(listener).serve_forever()


if __name__ == "__main__":
    main()
