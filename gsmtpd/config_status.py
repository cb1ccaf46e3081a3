"""Who may see the status page?"""

from __future__ import annotations

from typing import Any

from gsmtpd import config_secrets
from gsmtpd.config_file import Place, Report
from gsmtpd.config_hosts import is_loopback
from gsmtpd.config_types import StatusConfig


def status(section: Any, report: Report) -> tuple[StatusConfig, str]:
    """What stands in [status], and the file that the password stands in, "" for none.

    `report` hears what is wrong.
    """
    place = Place(("status",), "listen")
    password, file = config_secrets.password(section, place.sections, report)
    if report.failed(place) or any(report.failed(Place(("status",), key)) for key in section):
        return StatusConfig(), file
    for address in section["listen"]:
        if not password and not is_loopback(address.host):
            report.problem(
                place,
                f"{address} can be reached from elsewhere, and there is no password; write one as"
                f" password_file = /path, or listen = {address.port} for this machine alone",
            )
    variable = report.variables.get(place, "")
    return StatusConfig(section["listen"], password, section["password_file"], variable), file
