# SPDX-License-Identifier: Apache-2.0
"""One word decides which configuration traffic sees; and what two CPUs do at once stays whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.packet.addresses import BACK, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.flowtable import packed
from tests.packet.node import Node


def test_without_a_configuration_everything_goes_to_linux(node: Node, net: Net) -> None:
    """Programs are attached before the first configuration is applied."""
    node.apply([service(net)], nat=[masquerade(net)])
    epoch, _ = node.datapath.active()
    config = node.datapath.table("config_v4")
    keys, rows = config.items()
    node.datapath.set_epoch(0)
    config.update(keys, np.zeros_like(rows))
    try:
        assert Conversation(node, net).first().reason == "punt_not_ours"
        assert Conversation(node, net, inside=True).first().reason == "punt_not_ours"
    finally:
        config.update(keys, rows)
        node.datapath.set_epoch(epoch)
    assert Conversation(node, net).first().reason == "forward_new"


def test_rows_of_the_next_epoch_are_not_seen_before_the_switch(node: Node, net: Net) -> None:
    tables = node.apply([service(net)])
    following = tables.epoch + 1
    row = node.datapath.table("service_v2").items()[1][0]
    fields = {name: row[name] for name in ("id", "wheel_base", "wheel_slots", "mode", "algorithm")}
    key = {"epoch": following, "port": 80, "proto": 6, "family": net.family}
    node.write("service_v2", {**key, "address": packed(net.other_vip)}, fields)
    node.write("config_v4", following & 1, {"epoch": following, "services": 1})
    assert Conversation(node, net, to=net.other_vip).first().reason == "punt_not_ours"
    assert Conversation(node, net).first().reason == "forward_new"
    node.datapath.set_epoch(following)
    try:
        assert Conversation(node, net, to=net.other_vip, sport=41000).first().reason == "forward_new"
        assert Conversation(node, net, sport=41000).first().reason == "punt_not_ours"
    finally:
        node.datapath.set_epoch(tables.epoch)


@pytest.fixture
def two_cpus() -> Iterator[list[int]]:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    yield allowed[:2]
    os.sched_setaffinity(0, allowed)


def together(node: Node, cpus: list[int], frames: list[bytes], device: str) -> list[list[bytes]]:
    """Runs every frame on both CPUs at about the same time; what left, by CPU."""
    start = threading.Barrier(len(cpus))
    out: list[list[bytes]] = [[] for _ in cpus]

    def work(number: int, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        for frame in frames:
            start.wait(timeout=30)
            out[number].append(node.run(frame, device).packet)

    threads = [threading.Thread(target=work, args=(n, cpu)) for n, cpu in enumerate(cpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_two_cpus_that_open_one_connection_agree(node: Node, net: Net, two_cpus: list[int]) -> None:
    """Round-robin gives each of them another endpoint: one wins, both send to it."""
    node.apply([service(net, *net.endpoints[:4], protocol="udp", algorithm="round-robin")])
    frames = [Conversation(node, net, proto="udp", sport=5000 + n).client_frame() for n in range(100)]
    first, second = together(node, two_cpus, frames, "front")
    assert first == second
    assert node.flows.entries() == 200
    assert all(connection.paired for connection in node.flows.connections())
    assert sum(connection.packets for connection in node.flows.connections()) >= 100


def test_two_cpus_that_masquerade_never_share_a_port(node: Node, net: Net, two_cpus: list[int]) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2063")])
    frames = [
        Conversation(node, net, proto="udp", inside=True, sport=5000 + n).client_frame() for n in range(64)
    ]
    start = threading.Barrier(2)

    def work(cpu: int, mine: list[bytes]) -> None:
        os.sched_setaffinity(0, {cpu})
        start.wait(timeout=30)
        for frame in mine:
            node.run(frame, BACK)

    threads = [threading.Thread(target=work, args=(cpu, frames[n::2])) for n, cpu in enumerate(two_cpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [connection.source_out_port for connection in node.flows.connections()]
    assert sorted(taken) == list(range(2000, 2064))
