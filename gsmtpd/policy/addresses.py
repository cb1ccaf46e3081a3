"""Is this address in a list of addresses, and which item of the list names it?"""

from __future__ import annotations

from collections.abc import Iterable


class AddressSet:
    """A set of addresses: "user@example.com", "user" in every domain, "@example.com" for all of it.

    items: as gsmtpd.policy.names.address_item writes them.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[str]) -> None:
        # One set for all: a full address ends with its domain, which holds no "@" and no quote, and
        # a local part holds an "@" only in quotes.
        self._items = frozenset(items)

    def __len__(self) -> int:
        return len(self._items)

    def match(self, local: str, domain: str) -> str:
        """The item that names the address, the most specific one; "" if none does.

        local: in lower case. domain: in lower case, A-labels or an address literal; "" for the
        domainless postmaster, whom only his local part names.
        """
        items = self._items
        for item in (f"{local}@{domain}", f"@{domain}", local):
            if item in items:
                return item
        return ""
