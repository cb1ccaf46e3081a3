"""How much mail may be on its way to clients at a time? Its octets are in memory until it is sent.

What is small is in the kernel's buffers at once, whoever reads it. What is large stays with us for
as long as its client takes.
"""

from __future__ import annotations

from aiohttp import web

MOST = 128 << 20  # octets of all clients; one mail may be larger, if it is alone
SMALL = 256 << 10  # octets; what is no larger does not count
_PIECE = 64 << 10
_AGAIN_IN = 1  # seconds, for who was sent away


class Outgoing:
    """The octets of mail that are being sent."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._size = 0

    async def send(self, request: web.Request, answer: web.Response) -> web.StreamResponse:
        """Send `answer`, or that so much is being sent already. It may only be returned then."""
        octets = answer.body
        assert isinstance(octets, bytes)
        if len(octets) <= SMALL:
            return answer
        if self._size and self._size + len(octets) > self._most:
            raise web.HTTPServiceUnavailable(
                reason="others fetch too much mail now; ask again",
                headers={"Retry-After": str(_AGAIN_IN)},
            )
        self._size += len(octets)
        try:
            return await _sent(request, answer, octets)
        finally:
            self._size -= len(octets)


async def _sent(request: web.Request, answer: web.Response, octets: bytes) -> web.StreamResponse:
    """Send it piece by piece: what the transport has not got rid of yet, it would have copied."""
    sending = web.StreamResponse(status=answer.status, headers=answer.headers)
    sending.content_length = len(octets)
    await sending.prepare(request)
    if request.method != "HEAD":
        whole = memoryview(octets)
        for start in range(0, len(octets), _PIECE):
            await sending.write(bytes(whole[start : start + _PIECE]))
        await sending.write_eof()
    return sending
