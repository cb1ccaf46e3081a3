"""Which of these networks is a client in?"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from gsmtpd.policy.names import network_text, prefix


class NetworkSet:
    """Networks, in memory; asking costs a look for each prefix length there is among them.

    networks: as gsmtpd.policy.names.network gives them.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        starts: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for text in networks:
            version, start, beyond = prefix(text)
            starts[version].setdefault(beyond, set()).add(start)
        # By IP version: the number of bits beyond a prefix, least first, and the prefixes.
        self._starts = {version: sorted(of.items()) for version, of in starts.items()}
        self._length = sum(len(each) for of in starts.values() for each in of.values())

    def __len__(self) -> int:
        return self._length

    def match(self, ip: str) -> str:
        """The smallest network that `ip` is in, as `network` gives it; "" if none, or no address.

        ip: an IPv4 or IPv6 address, perhaps with a scope id, as accept() tells it.
        """
        if not self._length:
            return ""
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return ""
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        number = int(address)
        for beyond, starts in self._starts[address.version]:
            if number >> beyond in starts:
                start = (number >> beyond << beyond, address.max_prefixlen - beyond)
                kind = ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
                return network_text(kind(start))
        return ""


def ip_of(client_address: tuple[str, int]) -> str:
    """The IP address of a client; a dual-stack socket names IPv4 as ::ffff:192.0.2.1."""
    ip = client_address[0]
    return ip[7:] if ip.startswith("::ffff:") and "." in ip else ip
