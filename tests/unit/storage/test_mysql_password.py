"""How does a password reach a MySQL 8, whose accounts use caching_sha2_password?

Debian has no MySQL, so a server that knows the first packets of its protocol stands in for it:
https://dev.mysql.com/doc/dev/mysql-server/latest/page_caching_sha2_authentication_exchanges.html
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pymysql
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gsmtpd.storage.mysql_connection import Database, Host, store_error
from gsmtpd.storage.mysql_hosts import Hosts

CHALLENGE = b"challenge of twelve!"
CAPABILITIES = 0x8 | 0x200 | 0x8000 | 0x80000  # database, protocol 4.1, long challenge, plugins
GREETING = (
    b"\x0a8.0.40\0"
    + struct.pack("<I", 1)
    + CHALLENGE[:8]
    + b"\0"
    + struct.pack("<HBHHB", CAPABILITIES & 0xFFFF, 45, 2, CAPABILITIES >> 16, 21)
    + bytes(10)
    + CHALLENGE[8:]
    + b"\0caching_sha2_password\0"
)
CHALLENGE = b"challenge of twelve!"
FULL_AUTHENTICATION = b"\x01\x04"  # the account is not in the server's cache
ASKS_FOR_KEY = b"\x02"


def read_packet(client: socket.socket) -> bytes:
    with client.makefile("rb") as stream:
        head = stream.read(4)
        return stream.read(int.from_bytes(head[:3], "little")) if head else b""


def write_packet(client: socket.socket, number: int, content: bytes) -> None:
    client.sendall(len(content).to_bytes(3, "little") + bytes([number]) + content)


def password_of_one_client(listening: socket.socket, key: rsa.RSAPrivateKey) -> bytes:
    """What a client sends when it is asked for its password in full, and how."""
    with closing(listening.accept()[0]) as client:
        client.settimeout(10)
        write_packet(client, 0, GREETING)
        assert b"gsmtpd\0" in read_packet(client)
        write_packet(client, 2, FULL_AUTHENTICATION)
        answer = read_packet(client)
        if answer != ASKS_FOR_KEY:
            return b"as it is: " + answer
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_packet(client, 4, b"\x01" + public)
        mask = padding.MGF1(hashes.SHA1())  # noqa: S303
        oaep = padding.OAEP(mask, hashes.SHA1(), None)  # noqa: S303
        clear = key.decrypt(read_packet(client), oaep)
        return b"encrypted: " + bytes(a ^ b for a, b in zip(clear, CHALLENGE, strict=False))


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


def database(host: Host) -> Database:
    return Database((host,), "gsmtpd", "a password", "gsmtpd")


def test_as_it_is_over_a_unix_socket(
    tmp_path: Path, executor: ThreadPoolExecutor, key: rsa.RSAPrivateKey
) -> None:
    """Nobody can listen there, so it need not be encrypted."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        answer = executor.submit(password_of_one_client, listening, key)
        with pytest.raises(pymysql.err.OperationalError):  # the server hangs up then
            Hosts(database(Host("localhost", unix_socket=str(tmp_path / "socket")))).connect()
        assert answer.result() == b"as it is: a password\0"


def test_encrypted_over_tcp(executor: ThreadPoolExecutor, key: rsa.RSAPrivateKey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answer = executor.submit(password_of_one_client, listening, key)
        with pytest.raises(pymysql.err.OperationalError):
            Hosts(database(Host(*listening.getsockname()))).connect()
        assert answer.result() == b"encrypted: a password\0"


def test_what_is_missing_is_said(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, key: rsa.RSAPrivateKey
) -> None:
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        executor.submit(password_of_one_client, listening, key)
        host = Host(*listening.getsockname())
        with pytest.raises(pymysql.err.OperationalError) as raised:
            Hosts(database(host)).connect()
    said = str(store_error(raised.value, database(host)))
    assert "python3-cryptography" in said
    assert "caching_sha2_password" in said
