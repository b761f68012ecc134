# SPDX-License-Identifier: Apache-2.0
"""New connections a second through the same rules: clearway, nftables and iptables, each in a lab of its own.

client -- client1 (node) uplink -- outside
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy.typing as npt

from bench.firewall.frames import LENGTH_AT, first_packets, frames_of
from bench.firewall.replay import Sender, open_sender
from bench.firewall.rules import CLIENTS, FAMILIES, firewall, iptables, nftables, ruleset
from bench.flows.node import forget_flows
from bench.progress import Progress
from bench.results import Report
from bench.roads import prepare
from bench.scheduling import alone_on
from bench.traffic import Device, Expectation, Sink, find_device
from clearway.datapath import Datapath
from clearway.lab import Lab, LabError, Namespace, Topology

Array = npt.NDArray[Any]

RULES = 1000
BURST = 24_000  # below nf_conntrack_max, which cannot be raised in a namespace; tables are emptied in between
ROUNDS = 9
MAX_FLOWS = 262_144  # as many as Linux has room for
LOST_AT_MOST = 0.001
# Where the packets come from, by family: what rules.py of the classifier's benchmark makes up
BEHIND_CLIENT = {
    4: ("10.128.0.0/9", "11.0.0.0/8", "100.64.0.0/16"),
    6: ("2001:db8:80::/41", "2001:db8:100::/40", "fd01::/64"),
}
CONNTRACK_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
RATE = "new connections per second"
XDP_AT_LEAST = 10.0  # times what nftables does


class System(StrEnum):
    """What filters on the node."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"
    TC = "tc"  # clearway
    XDP = "xdp"


@dataclass
class Filter:
    """A lab whose node lets through what the rules accept. `opened`: connections that it has; `forget`: none
    any more.
    """

    system: System
    opened: Callable[[], int]
    forget: Callable[[], None]
    sender: Sender
    client: Device
    entry: Device
    end: Device
    rates: list[float] = field(default_factory=list)

    def take(self, frames: Array, sink: Sink) -> None:
        """One burst that counts. LabError when it is not what it is meant to be."""
        self.forget()
        before, opened = sink.arrived(), self.opened()
        burst = self.sender.send(frames)
        arrived, opened = sink.arrived() - before, self.opened() - opened
        if min(arrived, opened) < len(frames) * (1 - LOST_AT_MOST):
            what = f"of {len(frames)} first packets {arrived} arrived, {opened} opened a connection"
            raise LabError(f"{self.system}: {what}")
        self.rates.append(arrived / burst.seconds)


def measure(report: Report, progress: Progress, cpu: int) -> None:
    """Packets that meet rules chosen at random, and such as only the last of all rules accepts."""
    with ExitStack() as stack:
        with progress.step(f"labs with {RULES:,} rules of each family"):
            filters = [stack.enter_context(open_filter(system)) for system in System]
        for family in FAMILIES:
            rules = ruleset(RULES, family)
            for what, met in (("a rule at random", rules[:-1]), ("the last rule", rules[-1:])):
                case = f"IPv{family}, {RULES:,} rules, {what} accepts"
                with progress.step(f"new connections, {case}"):
                    _take_turns(filters, family, first_packets(met, BURST, family), cpu)
                rates = {f"{case}, {one.system}": list(one.rates) for one in filters}
                report.add(RATE, "connections/s", rates, f"{case}, {System.NFTABLES}")
                report.expect(f"{case}, {System.XDP}", RATE, XDP_AT_LEAST)


def _take_turns(filters: Sequence[Filter], family: int, words: Array, cpu: int) -> None:
    """One burst of each a round, every second round in the opposite order. The first round is for caches."""
    with ExitStack() as stack:
        frames, sinks = {}, {}
        for one in filters:
            frames[one.system] = made = frames_of(words, family, one.client.mac, one.entry.mac)
            at = LENGTH_AT[family]
            expected = Expectation(at, made[0, at : at + 4].tobytes())
            sinks[one.system] = stack.enter_context(Sink(one.end, expected))
        for number in range(-1, ROUNDS):
            for one in filters if number % 2 == 0 else reversed(filters):
                with alone_on(cpu):
                    one.take(frames[one.system], sinks[one.system])
    for one in filters:
        del one.rates[:-ROUNDS]


@contextmanager
def open_filter(system: System) -> Iterator[Filter]:
    """For the time of the `with` block."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(f"bench-fw-{system}", Topology(clients=1, servers=0)))
        prepare(lab)
        lab.node.ip_batch(
            f"route add {prefix} via {lab.client.address(family)}"
            for family in FAMILIES
            for prefix in (*BEHIND_CLIENT[family], CLIENTS[family])
        )
        if system in (System.XDP, System.TC):
            opened, forget = _clearway(lab, system, stack)
        else:
            opened, forget = _linux(lab, system)
        client = find_device(lab.client.ns, "eth0")
        yield Filter(
            system,
            opened,
            forget,
            stack.enter_context(open_sender(client, BURST)),
            client,
            find_device(lab.node, lab.client.plan.interface),
            find_device(lab.outside.ns, "eth0"),
        )


def _linux(lab: Lab, system: System) -> tuple[Callable[[], int], Callable[[], None]]:
    node = lab.node
    for family in FAMILIES:
        rules = ruleset(RULES, family)
        if system is System.NFTABLES:
            node.run("nft", "-f", "-", stdin=nftables(rules, family))
        else:
            node.run("iptables-restore" if family == 4 else "ip6tables-restore", stdin=iptables(rules))
    return lambda: int(node.read(CONNTRACK_COUNT)), lambda: _flush(node)


def _flush(node: Namespace) -> None:
    node.run("conntrack", "-F")


def _clearway(lab: Lab, hook: str, stack: ExitStack) -> tuple[Callable[[], int], Callable[[], None]]:
    lab.prepare_for(hook)
    daemon = stack.enter_context(lab.daemon(configuration(lab.interfaces, hook)))
    datapath = stack.enter_context(Datapath.open(daemon.instance))
    return lambda: datapath.counters().reasons["forward_new"].packets, lambda: forget_flows(datapath)


def configuration(interfaces: Sequence[str], hook: str) -> str:
    """The node's: RULES of each family."""
    data = {
        "interfaces": [{"name": name, "hook": hook} for name in interfaces],
        "conntrack": {"max_flows": MAX_FLOWS},
        "limits": {"rules": 4 * RULES},
        "firewall": firewall([rule for family in FAMILIES for rule in ruleset(RULES, family)]),
    }
    return json.dumps(data)
