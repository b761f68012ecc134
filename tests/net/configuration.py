# SPDX-License-Identifier: Apache-2.0
"""The configuration most network tests run under. JSON is YAML."""

from __future__ import annotations

import json
from typing import Any

from clearway.lab import SERVER_PORT, Lab

WEB_PORT = 80  # nat, maglev -> nginx
FULL_NAT_PORT = 8000  # full-nat, round robin -> nginx
TCP_PORT = 9000  # nat -> whatever a test listens with on RAW_PORT
FULL_NAT_TCP_PORT = 9001  # full-nat -> the same
UDP_PORT = 5353  # nat, UDP -> RAW_PORT
RAW_PORT = 7000
CLIENTS = {4: "10.1.0.0/16", 6: "fd00:1::/32"}


def service(
    lab: Lab, family: int, name: str, port: int, to: int, protocol: str = "tcp", **more: object
) -> dict[str, Any]:
    """A service of one family, on all servers of the lab."""
    return {
        "name": f"{name}{family}",
        "address": lab.vip(family),
        "port": port,
        "protocol": protocol,
        "mode": "nat",
        "algorithm": "maglev",
        "endpoints": [{"address": server.address(family), "port": to} for server in lab.servers],
        **more,
    }


def data(lab: Lab, hook: str) -> dict[str, Any]:
    """The standard configuration as plain data, for tests that change it."""
    services = []
    for family in (4, 6):
        full_nat = {"mode": "full-nat", "algorithm": "round-robin"}
        services += [
            service(lab, family, "web", WEB_PORT, SERVER_PORT),
            service(lab, family, "full", FULL_NAT_PORT, SERVER_PORT, **full_nat),
            service(lab, family, "tcp", TCP_PORT, RAW_PORT),
            service(lab, family, "fulltcp", FULL_NAT_TCP_PORT, RAW_PORT, **full_nat),
            service(lab, family, "udp", UDP_PORT, RAW_PORT, "udp"),
        ]
    return {
        "interfaces": [{"name": name, "hook": hook} for name in lab.interfaces],
        "services": services,
        "nat": [
            {"name": f"out{family}", "source": CLIENTS[family], "interface": "uplink", "masquerade": True}
            for family in (4, 6)
        ],
        "conntrack": {"max_flows": 65536},
    }


def standard(lab: Lab, hook: str) -> str:
    return json.dumps(data(lab, hook), indent=1)
