# SPDX-License-Identifier: Apache-2.0
"""What rules cost the first packet of a connection, by how many there are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.firewall.frames import first_packets, frames_of
from bench.firewall.replay import Replay
from bench.firewall.rules import ruleset
from bench.flows.node import BACK, DEVICES, ENDPOINTS, FRONT, ROUTER, Node, device_mac, host, neighbour_mac
from bench.flows.opening import OTHERS
from bench.flows.shapes import conversation
from bench.flows.traffic import CLEARWAY, EMPTY, HOOKS, Generator
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from clearway.compiler import Tables

Array = npt.NDArray[Any]

NONE = "no firewall"
TIME = "program time of a first packet"
MORE = "program time of a first packet, more than with 10 rules"
MORE_AT_MOST = {10_000: 300, 100_000: 600}  # ns
ROUNDS, ROUNDS_OF_RULES = 11, 7
WARMING, BURST = 500, 3000  # packets
# Rules have just been written, perhaps by another CPU: fewer would measure how they come into the caches.
WARMING_RULES = 12_000
SPARE = 1000  # more than go to neighbours
# Where the rules' packets go to, by family: what rules.py of the classifier's benchmark makes up
BEHIND_BACK = {4: ("10.0.0.0/10", "192.0.0.0/16"), 6: ("2001:db8::/32", "fd00::/64")}


def prepare(node: Node) -> None:
    """Ways to where the packets go."""
    node.inside.ip_batch(
        f"route add {prefix} via {host(family, BACK, ENDPOINTS[0])} dev {BACK}"
        for family, prefixes in BEHIND_BACK.items()
        for prefix in prefixes
    )


def frames_for(rules: int, count: int, family: int) -> Array:
    """First packets from the front that meet so many rules at random."""
    words = first_packets(ruleset(rules, family)[:-1], count + SPARE, family)
    routed = words[~_is_neighbour(words[:, 2], family)][:count]
    return frames_of(routed, family, neighbour_mac(FRONT, ROUTER), device_mac(FRONT))


def _is_neighbour(destinations: Array, family: int) -> Array:
    """Is it in one of the networks that the node is in, where nobody answers for most? destinations: their
    first words.
    """
    bits, rest = (64, 0) if family == 6 else (8, 8)
    networks = [int(ip_address(host(family, device, 0))) >> bits for device in DEVICES]
    return np.isin(destinations >> np.uint64(rest), np.array(networks, np.uint64))


def measure(
    node: Node, family: int, rules: dict[int, Tables], report: Report, progress: Progress, cpu: int
) -> None:
    """Connections that nothing but the rules has to do with, from the front to the back, each accepted by a
    rule chosen at random. All sets of rules take turns in one data path.
    """
    each = WARMING_RULES + BURST
    with progress.step(f"first packets, IPv{family}"), ExitStack() as stack:
        hooks = {hook: stack.enter_context(Replay(node, hook, each)) for hook in HOOKS}
        frames = {count: frames_for(count, ROUNDS_OF_RULES * len(HOOKS) * each, family) for count in rules}
        times: dict[tuple[str, int], list[float]] = {(hook, count): [] for hook in HOOKS for count in rules}
        for number in range(ROUNDS_OF_RULES):
            node.forget()
            for count in rules if number % 2 == 0 else reversed(rules):
                node.put(rules[count])
                for place, hook in enumerate(HOOKS):
                    begin = (number * len(HOOKS) + place) * each
                    times[hook, count].append(_burst(hooks[hook], frames[count][begin : begin + each], cpu))
    for hook in HOOKS:
        _report(report, f"IPv{family}, {hook}", {count: times[hook, count] for count in rules})
    node.forget()


def _burst(replay: Replay, frames: Array, cpu: int) -> float:
    """Nanoseconds a packet."""
    replay.give(frames)
    with alone_on(cpu):
        replay.burst(WARMING_RULES, "forward_new")
        empty = replay.send(len(frames), EMPTY)
        return float(replay.burst(BURST, "forward_new") - empty)


def through_service(
    node: Node, family: int, firewalls: dict[str, Tables], report: Report, progress: Progress, cpu: int
) -> None:
    """UDP to a service, which can do without a firewall (NONE); others by what they are called."""
    each = WARMING + BURST
    numbers = itertools.count(OTHERS, each)
    with progress.step(f"first packets to a service, IPv{family}"), ExitStack() as stack:
        hooks = {hook: stack.enter_context(Generator(node, hook)) for hook in HOOKS}
        times: dict[tuple[str, str], list[float]] = {(hook, name): [] for hook in HOOKS for name in firewalls}
        for number in range(ROUNDS):
            for name in firewalls if number % 2 == 0 else reversed(firewalls):
                node.put(firewalls[name])
                for hook, generator in hooks.items():
                    generator.aim(conversation(family)[0], next(numbers), each)
                    times[hook, name].append(_service_burst(generator, cpu))
    for hook in HOOKS:
        names = {name: f"IPv{family} service, {hook}, {name}" for name in firewalls}
        report.add(TIME, "ns", {names[name]: times[hook, name] for name in firewalls}, names[NONE])
    node.forget()


def _service_burst(generator: Generator, cpu: int) -> float:
    """Nanoseconds a packet."""
    with alone_on(cpu):
        generator.burst(WARMING, CLEARWAY, "forward_new")
        empty = generator.send(WARMING + BURST, EMPTY)
        return float(generator.burst(BURST, CLEARWAY, "forward_new") - empty)


def _report(report: Report, case: str, times: Mapping[int, list[float]]) -> None:
    fewest = min(times)
    names = {count: f"{case}, {count:,} rules" for count in times}
    report.add(TIME, "ns", {names[count]: times[count] for count in times}, names[fewest])
    for count, limit in MORE_AT_MOST.items():
        more = [many - few for many, few in zip(times[count], times[fewest], strict=True)]
        report.add(MORE, "ns", {names[count]: more})
        report.expect_at_most(names[count], MORE, limit)
