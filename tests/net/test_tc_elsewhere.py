# SPDX-License-Identifier: Apache-2.0
"""tc on a device that clearway is not on, and by which packets leave that it carries."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from clearway.lab.run import wait_until
from tests.net.gateway import Gateway, made
from tests.net.streams import Pump, Stream

NETWORKS = {4: ("10.71.0.{}", "10.72.0.{}"), 6: ("fd71::{}", "fd72::{}")}
MANY = 20  # packets, more than Linux sends by itself meanwhile
RULES = "table inet t { chain c { type filter hook forward priority 0; ct state established accept\n }\n }"


@pytest.fixture(scope="module")
def gateway(
    lab_names: Iterator[str], hook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    with made(f"cw-{next(lab_names)}", tmp_path_factory.mktemp("state")) as gateway:
        for side, (device, far) in enumerate((("lan", gateway.client), ("wan", gateway.server))):
            gateway.link(device, far, "eth0", NETWORKS, side)
            gateway.default_route(far, NETWORKS, side)
        gateway.router.run("nft", "-f", "-", stdin=RULES)
        gateway.clearway("up", "lan", "--hook", hook)
        yield gateway


@pytest.fixture(scope="module")
def stream(gateway: Gateway) -> Iterator[Stream]:
    to = (NETWORKS[4][1].format(2), 5001)
    with Pump() as pump:
        [stream] = pump.add([Stream("TCP", socket.SOCK_STREAM, gateway.client, to, gateway.server, to)])
        yield stream


def test_queue_that_shapes_gets_what_is_carried(gateway: Gateway, stream: Stream) -> None:
    def sent() -> int:
        [queue] = json.loads(gateway.router.run("tc", "-s", "-j", "qdisc", "show", "dev", "wan").stdout)
        return int(queue["packets"])

    gateway.carried(stream, directions=["there"])
    shaping = ("tbf", "rate", "1gbit", "burst", "100kb", "latency", "50ms")
    gateway.router.run("tc", "qdisc", "add", "dev", "wan", "root", *shaping)
    try:
        wait_until("the queue gets some", lambda: sent() > MANY, timeout=2)
        before, carried = sent(), gateway.forwarded()
        gateway.carried(stream, directions=["there"])
        since = gateway.forwarded() - carried
        assert sent() - before > since - MANY
    finally:
        gateway.router.run("tc", "qdisc", "delete", "dev", "wan", "root")
