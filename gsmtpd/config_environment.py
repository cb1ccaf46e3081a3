"""Which settings does the environment change? GSMTPD_SECTION_KEY variables, laid over the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from gsmtpd import config_tls
from gsmtpd.config_file import CONTROL, MANY, Place, Report, settings
from gsmtpd.wording import printable

PREFIX = "GSMTPD_"
NOT_SETTINGS = ("GSMTPD_TEST_", "GSMTPD_RUN_", "GSMTPD_FAILPOINTS")  # of scripts/ and of tests
DEFAULT_LISTENER = "mx"  # the one there is without [listen]


def override(tree: Any, spec: Any, environ: Mapping[str, str], report: Report) -> None:
    """Lay the GSMTPD_SECTION_KEY variables over the file.

    A new name in [listen] is a listener, in [tls] a name with a certificate, in [handlers] one.
    """
    places = _variables(tree, spec)
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable.startswith(NOT_SETTINGS):
            continue
        place = places.get(variable) or _new_name(variable, spec)
        if place is None:
            nearest = difflib.get_close_matches(variable, places, n=1, cutoff=0.0)[0]
            report.add(f"{printable(variable)}: unknown variable; did you mean {nearest}?")
            continue
        report.variables[place] = variable
        if CONTROL.search(environ[variable]):
            report.problem(place, "has a control character, or is not UTF-8; take it out")
            continue
        section = tree
        for name in place.sections:
            section = section.setdefault(name, {})
        section[place.key] = environ[variable]


def _variables(tree: Any, spec: Any) -> dict[str, Place]:
    """The place that each variable sets."""
    defaults = {"listen": [DEFAULT_LISTENER], "tls": [], "handlers": []}
    places: list[Place] = []
    for place in settings(spec):
        if MANY in place.sections:
            section = place.sections[0]
            names = tree[section].sections if section in tree else defaults[section]
            places += [Place((section, name), place.key) for name in names]
        else:
            places.append(place)
    for name in tree["handlers"].sections if "handlers" in tree else ():
        # With the settings of its own that the file has.
        places += [Place(("handlers", name), key) for key in tree["handlers"][name].scalars]
    return {variable_of(place): place for place in places}


def variable_of(place: Place) -> str:
    """The variable that sets `place`."""
    first, *rest = place.sections
    inner = map(config_tls.to_variable, rest) if first == "tls" else rest
    return PREFIX + "_".join((first, *inner, place.key)).upper().replace("-", "_")


def _new_name(variable: str, spec: Any) -> Place | None:
    """The place that `variable` sets in a listener, or a name for TLS, that the file lacks."""
    for section, first in (("listen", "[A-Z0-9]"), ("tls", "_?[A-Z0-9]"), ("handlers", "[A-Z0-9]")):
        keys = "|".join(key.upper() for key in spec[section][MANY].scalars if key != MANY)
        pattern = rf"{PREFIX}{section.upper()}_({first}[A-Z0-9_]*)_({keys})"
        if match := re.fullmatch(pattern, variable):
            name = match[1].lower()
            name = config_tls.from_variable(name) if section == "tls" else name
            return Place((section, name), match[2].lower())
    return None
