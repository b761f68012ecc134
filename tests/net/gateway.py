# SPDX-License-Identifier: Apache-2.0
"""A router between a client and a server, for `clearway up` and nothing else, and what it carries."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clearway.lab.daemon import remove_instance
from clearway.lab.namespace import Namespace, end_processes
from clearway.lab.run import run, wait_until
from tests.net.streams import Stream

LENGTHS = {4: 24, 6: 64}
LEAST = 20  # packets of a direction by which a connection is seen to be carried

Way = Literal["there", "back"]
Networks = Mapping[int, tuple[str, ...]]
"""By family: of each side, how its addresses are made of a number."""


@dataclass(frozen=True)
class Gateway:
    """Namespaces, and the instance of clearway in the router."""

    client: Namespace
    router: Namespace
    server: Namespace
    instance: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"CLEARWAY_STATE_DIR": str(self.directory)}

    def clearway(self, *words: str, stdin: str | None = None) -> str:
        argv = self.router.argv(sys.executable, "-m", "clearway", "--instance", self.instance, *words)
        return run(argv, stdin=stdin, env=self.environment, timeout=120).stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.clearway(*words, "-o", "json"))

    def forwarded(self) -> int:
        rows = self.json("get", "reasons")["reasons"]
        return sum(row["packets"] for row in rows if row["verdict"] == "forward")

    def conntrack(self, family: int) -> str:
        return self.router.run("conntrack", "-L", "-f", f"ipv{family}").stdout

    def proved(self, rule_count: int) -> None:
        """Returns when that many rules are known and proved."""
        wait_until(
            f"{rule_count} rules are proved",
            lambda: self.json("status")["adoption"]["rules"] == rule_count,
        )

    def interfaces(self) -> dict[str, Any]:
        return {one["name"]: one for one in self.json("get", "interfaces")["interfaces"]}

    def counted(self) -> dict[int, dict[Way, int]]:
        """Of each connection that is adopted, by its client's port: packets carried there and back."""
        flows = self.json("get", "flows", "--owner", "linux")["flows"]
        return {
            flow["client_port"]: {"there": flow["packets"], "back": flow["reply_packets"]} for flow in flows
        }

    def carried(self, *streams: Stream, directions: Sequence[Way] = ("there", "back")) -> None:
        """Returns when clearway carries these directions of all of them; LabError when it does not."""
        ports = [stream.port for stream in streams]

        def all_are() -> bool:
            first, then = self.counted(), self.counted()
            return all(
                port in first
                and port in then
                and all(then[port][way] - first[port][way] >= LEAST for way in directions)
                for port in ports
            )

        wait_until(f"{', '.join(map(str, streams))}: carried {' and '.join(directions)}", all_are)

    # ---- wiring ----

    def link(self, device: str, far: Namespace, far_device: str, networks: Networks, side: int) -> None:
        """A cable between a device of the router (address 1) and one of another namespace (address 2)."""
        self.cable(device, far, far_device)
        for family, of_sides in networks.items():
            for namespace, where, number in ((self.router, device, 1), (far, far_device, 2)):
                address = f"{of_sides[side].format(number)}/{LENGTHS[family]}"
                namespace.ip("addr", "add", address, "dev", where, "nodad")

    def cable(self, device: str, far: Namespace, far_device: str, *, card: bool = True) -> None:
        """The same without addresses. card: what arrives looks as if a network card had received it."""
        peer = ("peer", "name", far_device, "netns", far.name)
        self.router.ip("link", "add", device, "type", "veth", *peer)
        self.router.ip("link", "set", device, "up")
        far.ip("link", "set", far_device, "up")
        if card:
            far.run("ethtool", "-K", far_device, "tx", "off", "gro", "on")

    def default_route(self, far: Namespace, networks: Networks, side: int) -> None:
        for of_sides in networks.values():
            far.ip("route", "add", "default", "via", of_sides[side].format(1))


@contextmanager
def made(name: str, directory: Path, more: tuple[Namespace, ...] = ()) -> Iterator[Gateway]:
    """Namespaces without cables; the router forwards. directory: of the instance; more: other ones."""
    client, router, server = (Namespace(f"{name}-{who}") for who in ("client", "node", "server"))
    gateway = Gateway(client, router, server, name, directory)
    namespaces = (gateway.client, gateway.router, gateway.server, *more)
    with ExitStack() as undo:
        for namespace in namespaces:
            namespace.create()
            undo.callback(namespace.delete)
        undo.callback(end_processes, namespaces)
        undo.callback(remove_instance, gateway.router, gateway.instance, gateway.environment)
        gateway.router.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
        yield gateway
