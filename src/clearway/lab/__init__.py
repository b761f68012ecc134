# SPDX-License-Identifier: Apache-2.0
"""A test network in network namespaces: clients, a node, real servers, an outside host.

    with Lab("mine") as lab, lab.daemon(configuration) as daemon:
        lab.client.ns.run("curl", f"http://{lab.vip(4)}/")
        print(daemon.json("get", "reasons"))

Everything it makes is named `cw-NAME-...` and is gone after the block.
"""

from clearway.lab.daemon import Daemon
from clearway.lab.lab import Host, Lab, reap
from clearway.lab.namespace import Namespace
from clearway.lab.run import Interrupted, LabError, interruptible, wait_until
from clearway.lab.topology import SERVER_PORT, VIP4, VIP6, HostPlan, Role, Topology

__all__ = [
    "SERVER_PORT",
    "VIP4",
    "VIP6",
    "Daemon",
    "Host",
    "HostPlan",
    "Interrupted",
    "Lab",
    "LabError",
    "Namespace",
    "Role",
    "Topology",
    "interruptible",
    "reap",
    "wait_until",
]
