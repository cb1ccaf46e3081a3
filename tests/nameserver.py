"""Which DNS server do the tests ask for blocklists? rbldnsd, which is made for them.

This is not called `dns`, which is what dnspython is called.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.servers import Server, find_program


class Rbldnsd(Server):
    """rbldnsd on 127.0.0.1.

    zones: the lines of each zone. Those with ":" in the first word are IPv6 addresses, all others
    as rbldnsd's ip4set has them: "1.2.3.4 :127.0.0.2:Why it is listed". ttl: of what is listed;
    negative_ttl: of what is not, seconds.
    """

    def __init__(
        self, zones: Mapping[str, list[str]], *, ttl: int = 300, negative_ttl: int = 120
    ) -> None:
        super().__init__("rbldnsd")
        self.zones = [*zones]
        self.path.chmod(0o755)  # as root it becomes the user rbldns
        for zone, lines in zones.items():
            head = [
                f"$SOA {negative_ttl} ns.example.com hostmaster.example.com 1 1h 1h 1w"
                f" {negative_ttl}",
                f"$TTL {ttl}",
                ":127.0.0.2:",
            ]
            of_ip6 = [line for line in lines if ":" in line.split()[0]]
            self._write(f"{zone}.ip4", [*head, *(line for line in lines if line not in of_ip6)])
            self._write(f"{zone}.ip6", [*head[1:], *of_ip6])

    def _write(self, name: str, lines: list[str]) -> None:
        path = self.path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        path.chmod(0o644)  # whatever umask a test has left

    def command(self) -> list[str]:
        sets = [
            f"{zone}:{kind}:{zone}.{end}"
            for zone in self.zones
            for kind, end in (("ip4set", "ip4"), ("ip6trie", "ip6"))
        ]
        become = ["-u", "nobody"] if os.geteuid() == 0 else []
        return [
            *(find_program("rbldnsd"), "-n", "-4", *become, "-w", str(self.path)),
            *("-b", f"127.0.0.1/{self.port}", *sets),
        ]

    def answers(self) -> bool:
        name = b"".join(bytes([len(x)]) + x.encode() for x in self.zones[0].split(".")) + b"\0"
        question = struct.pack(">6H", 1, 0, 1, 0, 0, 0) + name + struct.pack(">2H", 6, 1)  # SOA
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            client.connect(self.address)
            client.send(question)
            return client.recv(512)[:2] == question[:2]
        return False


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[str, int]]:
    """The address of a name server that takes all questions and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind((host, port))
        yield hole.getsockname()
