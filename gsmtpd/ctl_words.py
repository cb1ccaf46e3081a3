"""How does gsmtpctl say times, spans and sizes?"""

from __future__ import annotations

import time


def when(seconds: float) -> str:
    """A moment in Unix time."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def lasting(seconds: float) -> str:
    """A time span as people say it: its two largest units."""
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {name}"
    return f"{seconds // 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def size(octets: float) -> str:
    """Octets as people say them."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if octets >= 1 << power:
            return f"{octets / (1 << power):.3g} {unit}"
    return f"{octets / 1024:.0f} KiB" if octets >= 1024 else f"{octets:.0f} B"


def rate(value: float) -> str:
    """How many, where tenths matter if there are few, and what is less if there are fewer yet."""
    if 0 < value < 0.1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.1f}"


def milliseconds(seconds: float | None) -> str:
    """How long something short took; "-" where nobody knows."""
    if seconds is None:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
