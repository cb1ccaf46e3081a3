"""What may clients do in the middle of a mail?"""

from __future__ import annotations

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.fault import Dose, Fault, fault_of
from gsmtpd.faultlab.lab import Lab

_SHARE = 0.3  # of the attempts that are broken off meanwhile
_RESETS = 5


def _reset_in(phase: str, name: str, description: str) -> Fault:
    """The fault that clients reset their connections in a phase of a mail."""

    def inject(lab: Lab, dose: Dose) -> str:
        before = _broken_off(lab, phase)
        lab.senders.break_off = _SHARE
        try:
            dose.wait(
                lambda: _broken_off(lab, phase) >= before + _RESETS, f"no client reset in {phase}"
            )
        finally:
            lab.senders.break_off = 0.0
        dose.over()
        return f"{_broken_off(lab, phase) - before} connections reset"

    return fault_of(inject, name, description)


def _broken_off(lab: Lab, phase: str) -> int:
    """How many attempts the ledgers say were broken off in `phase`."""
    mark = f'"phase":"{phase}"'.encode()
    count = 0
    for path in ledger.files(lab.ledgers):
        with path.open("rb") as lines:
            count += sum(b'"abandoned"' in line and mark in line for line in lines)
    return count


FAULTS = (
    _reset_in("data", "rst_in_data", "clients reset their connections in the middle of DATA"),
    _reset_in("dot", "rst_after_dot", "clients reset their connections behind the final dot"),
)
