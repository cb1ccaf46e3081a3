"""What would somebody send whose mail is to call home when it is looked at, or to run a script?

Each way has a host of its own: `WAY.trap.example`. What calls one is told by its name.
"""

from __future__ import annotations

from collections.abc import Collection

DOMAIN = "trap.example"
_PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="

# At once, when a browser shows them that nothing keeps from it.
LOADS = {
    "img": "<img src=http://{}/x>",
    "img-tls": "<img src=https://{}/x>",
    "img-slashes": "<img src=//{}/x>",
    "srcset": "<img srcset='http://{}/x 1x, http://{}/y 2x'>",
    "picture": "<picture><source srcset=http://{}/x><img></picture>",
    "background": "<table background=http://{}/x><tr><td>x</table>",
    "style": "<p style='background: url(http://{}/x)'>x</p>",
    "style-escaped": "<p style='background: \\75 rl(http://{}/x)'>x</p>",
    "css": "<link rel=stylesheet href=http://{}/x>",
    "import": "<style>@import 'http://{}/x';</style>",
    "font": "<style>@font-face {{ font-family: z; src: url(http://{}/x) }} i {{ font-family: z }}"
    "</style><i>x</i>",
    "cursor": "<style>ul {{ list-style: url(http://{}/x) }}</style><ul><li>x</ul>",
    "image-set": "<style>b {{ background: image-set('http://{}/x' 1x) }}</style><b>x</b>",
    "script": "<script src=http://{}/x></script>",
    "iframe": "<iframe src=http://{}/x></iframe>",
    "object": "<object data=http://{}/x></object>",
    "embed": "<embed src=http://{}/x>",
    "video": "<video src=http://{}/x autoplay></video>",
    "poster": "<video poster=http://{}/x></video>",
    "audio": "<audio src=http://{}/x preload=auto></audio>",
    "track": "<video src=data:, ><track default src=http://{}/x></video>",
    "svg-image": "<svg><image href=http://{}/x /></svg>",
    "svg-use": "<svg><style>circle {{ fill: url(http://{}/x#a) }}</style>"
    "<image xlink:href='http://{}/y' /></svg>",
    "input": "<form><input type=image src=http://{}/x></form>",
    "icon": "<link rel=icon href=http://{}/x>",
    "preload": "<link rel=preload as=image href=http://{}/x>",
    "prefetch": "<link rel=prefetch href=http://{}/x>",
    "preconnect": "<link rel=preconnect href=http://{}/>",
    "dns-prefetch": "<link rel=dns-prefetch href=//{}/>",
    "manifest": "<link rel=manifest href=http://{}/x>",
    "modulepreload": "<link rel=modulepreload href=http://{}/x>",
}
SCRIPTS = {
    "inline": "<script>{}</script>",
    "onerror": '<img src=x: onerror="{}">',
    "onload": f'<img src="{_PIXEL}" onload="{{}}">',
    "svg-onload": '<svg onload="{}"></svg>',
    "svg-script": "<svg><script>{}</script></svg>",
    "focus": '<input autofocus onfocus="{}">',
    "toggle": '<details open ontoggle="{}"><summary>x</summary>x</details>',
    "srcdoc": '<iframe srcdoc="<script>{}</script>"></iframe>',
    "frame": '<iframe src="javascript:{};void 0"></iframe>',
}
# They take the reader away, so each needs a page of its own.
LEAVES = {
    "refresh": "<meta http-equiv=refresh content='0; url=http://{}/x'>",
    "leave": "<script>top.location = 'http://{}/x'</script>",
    "submit": "<form id=f action=http://{}/x></form><script>f.submit()</script>",
}
_CALL = "new Image().src='http://{}/x';try{{top.document.title='it ran'}}catch(e){{}}"


def host(way: str) -> str:
    """Whom a way calls."""
    return f"{way}.{DOMAIN}"


def all_at_once(but: Collection[str] = ()) -> str:
    """A page with every way to load and to run; but: the ways to load that are left out."""
    loads = [html.replace("{}", host(way)) for way, html in LOADS.items() if way not in but]
    loads = [html.replace("{{", "{").replace("}}", "}") for html in loads]
    runs = [html.replace("{}", _CALL.format(host(f"run-{way}"))) for way, html in SCRIPTS.items()]
    return f"<html><body><p id=said>Look at me</p>{''.join(loads + runs)}<a href=x>x</a></body>"


def with_base() -> str:
    """A page whose images would all come from elsewhere."""
    return f"<base href=http://{host('base')}/><p id=said>Look at me</p><img src=x>"


def leaving(way: str) -> str:
    """A page that goes elsewhere."""
    return f"<p id=said>Look at me</p>{LEAVES[way].replace('{}', host(way))}"


def mail(html: str, subject: str = "Look at me") -> bytes:
    """A mail to you@example.com with this HTML."""
    lines = [
        "From: Mallory <mallory@trap.example>",
        "To: you@example.com",
        f"Subject: {subject}",
        "MIME-Version: 1.0",
        "Content-Type: text/html; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        html,
    ]
    return "\r\n".join(lines).encode() + b"\r\n"
