"""Can this be asked of a database, with one value in it?"""

from __future__ import annotations

import re

from gsmtpd.wording import shown

# What SQL has in quotes; a quote in it is there twice.
_QUOTED = re.compile(r"""'(?:[^']|'')*+'|"[^"]*"|`[^`]*`""")
_PERCENT = re.compile(r"%.?", re.DOTALL)
_COMMENT = re.compile(r"--|/\*|#")


def query(value: str) -> str:
    """A SELECT with exactly one %s for its parameter and %% for each percent sign, or nothing.

    Several lines become one, and a semicolon at the end goes. Raises ValueError.
    """
    text = re.sub(r"\s*\n\s*", " ", value).strip()
    if not text:
        return ""
    # Not WITH, as behind it some servers take an INSERT or DELETE.
    if not re.match(r"SELECT\b", text, re.IGNORECASE):
        raise ValueError(f"{shown(text)} is not a query; write one that begins with SELECT")
    text = text.rstrip("; ")
    outside = _QUOTED.sub("''", text)
    if re.search("[\"'`]", outside.replace("''", "")):
        raise ValueError("has a quote that is not closed; close it")
    _check_parameter(text, outside)
    if ";" in outside:
        raise ValueError("has more than one statement; write one, without ;")
    comment = _COMMENT.search(outside)
    if comment:
        raise ValueError(f"has a comment ({comment[0]}); write it without")
    if "#" in text and '"' in text and "'''" in text:
        # No quotes of gsmtpd.conf can be put around it.
        raise ValueError("has #, \" and '''; write it without one of them")
    return text


def _check_parameter(text: str, outside: str) -> None:
    percents = _PERCENT.findall(text)
    wrong = [percent for percent in percents if percent not in ("%s", "%%")]
    if wrong:
        raise ValueError(f"has {shown(wrong[0])}; write %% for a percent sign")
    found = percents.count("%s")
    if found != 1:
        times = f"{found} times" if found else "nowhere"
        raise ValueError(f"has %s {times}; write it once, where the value belongs")
    if "%s" not in _PERCENT.findall(outside):
        raise ValueError("has %s within quotes; write %s without quotes")
