"""Who may ask? The password, and which other websites a browser must not let in."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

OPEN = ("/healthz", "/readyz")  # for load balancers, which know no password
WRONG_AT_ONCE = 10  # wrong passwords of one address; then one in each PAUSE is looked at
PAUSE = 5.0  # seconds
_MOST = 10_000  # addresses that are remembered
_LOCAL = ("localhost", "ip6-localhost")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]@:/]+))(?::[0-9]{1,5})?", re.ASCII)
_OURS = ("same-origin", "none")  # Sec-Fetch-Site of our own page, and of what a person typed


class Refusal(NamedTuple):
    """Why a request is not answered. status: of HTTP. wrong: a password was said, a wrong one."""

    status: int
    text: str
    wrong: bool = False


class Door:
    """Lets requests in, or not.

    password: "" for none; then only this machine's own names are answered to. hosts: names and
    addresses that are listened on. clock: monotonic seconds.
    """

    def __init__(
        self,
        password: str,
        hosts: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._password = password.encode()
        self._hosts = {host.lower() for host in hosts}
        self._clock = clock
        # Address → when its next wrong password would be one too many, if it were said before.
        self._wrong: dict[str, float] = {}

    def refusal(
        self, method: str, path: str, headers: Mapping[str, str], address: str
    ) -> Refusal | None:
        """Why this request is refused, None where it is not. address: the client's IP address."""
        if path in OPEN:
            return None
        if not self._password and not self._is_ours(headers.get("Host", "")):
            return Refusal(
                403,
                "this name is none of this machine's own; ask for 127.0.0.1 or localhost, or set"
                " [status] password",
            )
        if _is_foreign(method, headers):
            return Refusal(403, "another website asks; open the page itself")
        return self._password_refusal(headers.get("Authorization", ""), address)

    def _is_ours(self, host: str) -> bool:
        """Whether `host`, of a Host field, cannot be a name that somebody else points at us."""
        name = _name_of(host)
        if name in _LOCAL or name in self._hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _password_refusal(self, said: str, address: str) -> Refusal | None:
        if not self._password:
            return None
        if not said:
            return Refusal(401, "say the password of [status] in gsmtpd.conf, as Basic or Bearer")
        place = _network(address)
        now = self._clock()
        due = max(self._wrong.get(place, 0.0), now)
        if due - now > WRONG_AT_ONCE * PAUSE:
            return Refusal(429, f"too many wrong passwords; try again in {PAUSE:g} s", wrong=True)
        if hmac.compare_digest(_password_in(said), self._password):
            return None
        if len(self._wrong) >= _MOST:
            self._wrong = {key: at for key, at in self._wrong.items() if at > now}
        if len(self._wrong) >= _MOST and place not in self._wrong:
            del self._wrong[next(iter(self._wrong))]  # who has said nothing for the longest time
        self._wrong.pop(place, None)
        self._wrong[place] = due + PAUSE
        return Refusal(401, "this is not the password of [status] in gsmtpd.conf", wrong=True)


def _is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a page of another website has a browser ask, other than by a link to here.

    Browsers say so by Sec-Fetch-Site (W3C Fetch Metadata), older ones by Origin (RFC 6454).
    """
    site = headers.get("Sec-Fetch-Site")
    if site in _OURS:
        return False
    if site is not None:
        mode, goal = headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")
        return not (method == "GET" and mode == "navigate" and goal == "document")
    origin = headers.get("Origin")
    return origin is not None and _place(origin) != headers.get("Host", "").lower()


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name_of(host: str) -> str:
    """The name in a Host field, without brackets and port; "" where it is none."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower().removesuffix(".") if match else ""


def _password_in(said: str) -> bytes:
    """The password in an Authorization field (RFC 7617, RFC 6750); b"" where there is none."""
    scheme, _, value = said.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode("utf-8", "surrogateescape")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _network(address: str) -> str:
    """Whose it is: one IPv4 address, or an IPv6 /64."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
