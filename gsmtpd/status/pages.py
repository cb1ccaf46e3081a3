"""Which files make the page?"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

_FILES = Path(__file__).with_name("page")
_INDEX = "index.html"
# By our own table: what a browser takes for a script must not depend on the system's.
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


class Pages:
    """/ and /static/…, from memory: the files are few and small."""

    def __init__(self) -> None:
        self._files = {
            path.relative_to(_FILES).as_posix(): (path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(_FILES.rglob("*"))
            if path.is_file() and path.suffix in _TYPES
        }

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [web.get("/", self._index), web.get("/static/{name:.+}", self._file)]

    async def _index(self, _: web.Request) -> web.Response:
        return self._answer(_INDEX)

    async def _file(self, request: web.Request) -> web.Response:
        return self._answer(request.match_info["name"])

    def _answer(self, name: str) -> web.Response:
        if name not in self._files:
            raise web.HTTPNotFound
        octets, kind = self._files[name]
        is_text = kind.startswith("text/")
        charset = "utf-8" if is_text else None
        return web.Response(body=octets, content_type=kind, charset=charset)
