"""What does every answer tell the browser not to do?"""

from __future__ import annotations

from aiohttp import web

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
# A mail: nothing runs in it, it is no part of our origin, and it loads nothing.
MAIL_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none';"
    " base-uri 'none'; frame-ancestors 'self'"
)
# Octets that somebody has sent: to be saved, whatever they look like.
OCTETS_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
_ALL = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "X-DNS-Prefetch-Control": "off",
}


def guard(response: web.StreamResponse) -> None:
    """Put into an answer what all have; what it says of these already stays."""
    for name, value in _ALL.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "gsmtpd"
