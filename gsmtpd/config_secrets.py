"""Which password is meant: one that stands in gsmtpd.conf, or in a file that it names?"""

from __future__ import annotations

from typing import Any

from gsmtpd.config_file import MAX_FILE, Place, Report
from gsmtpd.wording import shown


def password(section: Any, sections: tuple[str, ...], report: Report) -> tuple[str, str]:
    """What `password` or `password_file` of `section`, which is at `sections`, say.

    The password, and the file it stands in: "" for none, or where the environment has it. `report`
    hears what is wrong.
    """
    place = Place(sections, "password_file")
    found, file = str(section["password"]), section["password_file"]
    if not file or report.failed(place):
        named = found and Place(sections, "password") not in report.variables
        return found, report.path if named else ""
    if found:
        report.problem(place, "stands beside password; write one of them")
        return found, file
    try:
        with open(file, "rb") as lines:
            found = lines.readline(MAX_FILE).rstrip(b"\r\n").decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        report.problem(place, f"{shown(file)} cannot be read: {reason}; check its path and rights")
    else:
        if not found:
            report.problem(
                place, f"the first line of {shown(file)} is empty; write the password there"
            )
    return found, file
