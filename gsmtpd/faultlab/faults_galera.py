"""Which faults has a cluster of database servers?"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from gsmtpd.faultlab.fault import BrokenPromiseError, Dose, fault_of
from gsmtpd.faultlab.lab import Lab

if TYPE_CHECKING:
    from gsmtpd.faultlab.galera_lab import GaleraLab


def _cluster(lab: Lab) -> GaleraLab:
    return cast("GaleraLab", lab)


def node_killed(lab: Lab, dose: Dose) -> str:
    """The node in use is killed; the others take over"""
    cluster = _cluster(lab)
    node = cluster.in_use()
    node.kill()
    dose.hold(0.1)  # what it committed in its last moment is still being told
    back = dose.over()  # the service is to come back, though the node does not
    dose.hold(0.5, 2)
    cluster.galera.rejoin(node)
    return f"{node.name} killed, mail acknowledged {back:.1f} s later"


def node_stopped(lab: Lab, dose: Dose) -> str:
    """The node in use is stopped (SIGSTOP) for 20 s, and thrown out of the cluster"""
    cluster = _cluster(lab)
    node = cluster.in_use()
    node.freeze()
    try:
        dose.hold_long(20)
    finally:
        node.thaw()
    dose.over()
    cluster.galera.wait_synced()
    return f"{node.name} stopped"


def minority(lab: Lab, dose: Dose) -> str:
    """Two of three nodes are stopped: the third is a minority, which takes nothing"""
    cluster = _cluster(lab)
    used = cluster.in_use()
    others = [node for node in cluster.galera.nodes if node is not used]
    refused = lab.senders.refused
    for node in others:
        node.freeze()
    try:
        dose.wait(lambda: not used.primary(), "the node stayed primary")
        held = lab.senders.acknowledged
        dose.wait(lambda: lab.senders.refused > refused, "no mail was refused")
        dose.hold_long(5)
        late = lab.senders.acknowledged - held
    finally:
        for node in others:
            node.thaw()
    cluster.galera.wait_synced()
    dose.over()
    if late:
        raise BrokenPromiseError(f"{late} mails acknowledged by a minority")
    return f"{used.name} was alone, and {lab.senders.refused - refused} attempts refused"


def majority_killed(lab: Lab, dose: Dose) -> str:
    """Two of three nodes are killed, and the cluster is started anew from the third"""
    cluster = _cluster(lab)
    used = cluster.in_use()
    others = [node for node in cluster.galera.nodes if node is not used]
    refused = lab.senders.refused
    for node in others:
        node.kill()
    dose.wait(lambda: not used.primary(), "the node stayed primary")
    dose.wait(lambda: lab.senders.refused > refused, "no mail was refused")
    used.kill()
    cluster.galera.bootstrap(used)
    dose.over()
    for node in others:
        cluster.galera.rejoin(node)
    return f"{used.name} was alone, and {lab.senders.refused - refused} attempts refused"


FAULTS = (
    fault_of(node_killed, galera=True, takes=25.0),
    fault_of(node_stopped, galera=True, takes=15.0, long=20.0),
    fault_of(minority, galera=True, takes=25.0),
    fault_of(majority_killed, galera=True, takes=40.0),
)
