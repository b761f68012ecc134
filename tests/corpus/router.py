# SPDX-License-Identifier: Apache-2.0
"""A namespace that is the machine of a ruleset, and another one with the far ends of its interfaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from clearway.lab.namespace import Namespace
from tests.corpus.rulesets import Ruleset

ROUTER_MAC = "02:00:00:00:00:01"
LOADERS = {
    "nft": ("nft", "-f", "-"),
    "iptables-restore": ("iptables-nft-restore",),
    "ip6tables-restore": ("ip6tables-nft-restore",),
}
SAVERS = {4: "iptables-nft-save", 6: "ip6tables-nft-save"}
SETTINGS = {
    "ipv4/conf/all/forwarding": 1,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv6/conf/all/forwarding": 1,
    "ipv6/conf/default/accept_dad": 0,
}


@dataclass(frozen=True, slots=True)
class Router:
    """The machine, `node`; the far end of its interface number n is the device `far`n of `wire`."""

    node: Namespace
    wire: Namespace
    interfaces: tuple[str, ...]

    def far_end(self, interface: str) -> str:
        return f"far{self.interfaces.index(interface)}"

    def load(self, how: str, text: str) -> None:
        """Load rules as `how` (a key of LOADERS). LabError when they are refused."""
        self.node.run(*LOADERS[how], stdin=text)

    def listed(self, *, as_json: bool = True) -> str:
        """`nft list ruleset`."""
        return self.node.run("nft", *(("-j",) if as_json else ()), "list", "ruleset").stdout

    def saved(self, family: int) -> str:
        """`iptables-save` or, for 6, `ip6tables-save`: of the tables that iptables-nft has made, without the
        comments, which say when."""
        lines = self.node.run(SAVERS[family]).stdout.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("#"))


@contextmanager
def loaded(ruleset: Ruleset) -> Iterator[Router]:
    """The machine of a ruleset: its interfaces with their addresses, forwarding on, its rules in force.

    One at a time for each ruleset and process. LabError when a file is refused, or the caller is not root.
    """
    name = f"cw-corpus-{ruleset.name}-{os.getpid()}"
    router = Router(Namespace(name), Namespace(f"{name}-wire"), tuple(ruleset.interfaces))
    with ExitStack() as clean_up:
        for namespace in (router.node, router.wire):
            namespace.create()
            clean_up.callback(namespace.delete)
        router.node.sysctl(SETTINGS)
        router.wire.sysctl({"ipv6/conf/default/disable_ipv6": 1})  # the far ends say nothing by themselves
        router.node.ip_batch(_links(ruleset, router))
        router.wire.ip_batch(f"link set {router.far_end(near)} up" for near in ruleset.interfaces)
        for how, text in ruleset.texts:
            router.load(how, text)
        yield router


def _links(ruleset: Ruleset, router: Router) -> Iterator[str]:
    for near, addresses in ruleset.interfaces.items():
        peer = f"peer name {router.far_end(near)} netns {router.wire.name}"
        yield f"link add {near} address {ROUTER_MAC} type veth {peer}"
        yield from (f"address add {address} dev {near}" for address in addresses)
        yield f"link set {near} up"
