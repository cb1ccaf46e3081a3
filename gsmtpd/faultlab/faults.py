"""Which faults are there, by their names?"""

from __future__ import annotations

from gsmtpd.faultlab import (
    faults_client,
    faults_database,
    faults_galera,
    faults_network,
    faults_process,
)
from gsmtpd.faultlab.fault import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        *faults_database.FAULTS,
        *faults_network.FAULTS,
        *faults_process.FAULTS,
        *faults_client.FAULTS,
        *faults_galera.FAULTS,
    )
}


def select(text: str, galera: bool) -> list[Fault]:
    """The faults that `text` names, separated by commas; `all` is all that one lab can have.

    galera: whether the lab has a cluster. Raises ValueError for a name that there is not, or that
    is of another lab.
    """
    if text == "all":
        return [fault for fault in FAULTS.values() if fault.galera == galera]
    found = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        fault = FAULTS.get(name)
        if fault is None:
            raise ValueError(f"there is no fault {name!r}; `gsmtpd-faultlab faults` lists them")
        if fault.galera != galera:
            raise ValueError(f"the fault {name} is {'' if fault.galera else 'not '}for --galera")
        found.append(fault)
    if not found:
        raise ValueError("no fault is named")
    return found
