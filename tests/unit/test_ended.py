# SPDX-License-Identifier: Apache-2.0
"""Ends of connections as lines of JSON."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from clearway.api.control import FilterError
from clearway.daemon.ended import lines
from clearway.daemon.followers import Followers
from clearway.daemon.past import PastNames
from clearway.datapath.calls import Clock

HZ = 250
NOW = (1 << 32) + 100 * HZ
BITS = {
    "FLOW_PROTO": 0xFF,
    **{f"FLOW_SENT_{flag}": 1 << 8 + n for n, flag in enumerate(("SYN", "ACK", "FIN", "RST"))},
    **{f"FLOW_HEARD_{flag}": 1 << 12 + n for n, flag in enumerate(("SYN", "ACK", "FIN", "RST"))},
    "FLOW_HAS_SERVICE": 1 << 25,
    "FLOW_HAS_NAT": 1 << 26,
    "FLOW_PICKED_UP": 1 << 27,
}
TIMEOUTS = ("TCP_SYN_SENT", "TCP_SYN_RECEIVED", "TCP_ESTABLISHED", "TCP_HALF_CLOSED", "TCP_TIME_WAIT")
ENUMS = {
    "flow_end": {"FLOW_END_EXPIRED": 0, "FLOW_END_ENDPOINT_GONE": 2},
    "flow_state": BITS,
    "timeout": {
        f"TIMEOUT_{name}": number
        for number, name in enumerate((*TIMEOUTS, "TCP_CLOSED", "UDP", "UDP_STREAM", "ICMP", "COUNT"))
    },
}
TUPLE = np.dtype(
    [
        ("src", "u1", (16,)),
        ("dst", "u1", (16,)),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("proto", "u1"),
        ("family", "u1"),
    ]
)
RECORD = np.dtype(
    [
        ("client", TUPLE),
        ("leaves", TUPLE),
        ("packets", "<u8"),
        ("bytes", "<u8"),
        ("reply_packets", "<u8"),
        ("reply_bytes", "<u8"),
        ("ended", "<u8"),
        ("created", "<u4"),
        ("seen", "<u4"),
        ("reply_seen", "<u4"),
        ("state", "<u4"),
        ("endpoint", "<u4"),
        ("nat", "<u2"),
        ("why", "u1"),
    ]
)
WEB, DNS = ip_address("203.0.113.10"), ip_address("2001:db8::10")
NAMES = PastNames(
    services={(4, WEB.packed.ljust(16, b"\0"), 80, 6): "web", (6, DNS.packed, 53, 17): "dns"}, nats={3: "out"}
)


def record(**fields: Any) -> Any:
    row = np.zeros(1, RECORD)
    row["client"]["family"], row["client"]["proto"] = 4, 6
    row["client"]["src"][0, :4] = row["leaves"]["src"][0, :4] = [192, 0, 2, 1]
    row["client"]["dst"][0, :4], row["leaves"]["dst"][0, :4] = list(WEB.packed), [10, 0, 0, 9]
    row["client"]["sport"], row["client"]["dport"], row["leaves"]["dport"] = 4000, 80, 8080
    row["ended"], row["created"] = NOW - 10 * HZ, NOW - 70 * HZ & 0xFFFFFFFF
    row["seen"] = row["reply_seen"] = NOW - 30 * HZ & 0xFFFFFFFF
    for name, value in fields.items():
        row[name] = value
    return row


def told(*rows: Any) -> list[dict[str, Any]]:
    text = lines(np.concatenate(rows), NAMES, ENUMS, Clock(NOW, 0, HZ)).decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_times_are_seconds_since_the_epoch() -> None:
    (flow,) = told(record())
    assert flow["ended"] == pytest.approx(time.time() - 10, abs=30)
    assert flow["ended"] - flow["began"] == pytest.approx(60, abs=0.01)


def test_birth_before_the_clock_wrapped_counts() -> None:
    (flow,) = told(record(ended=1 << 32, created=(1 << 32) - 50 * HZ))
    assert flow["ended"] - flow["began"] == pytest.approx(50, abs=0.01)


@pytest.mark.parametrize(("seen", "reply_seen", "idle"), [(30, 25, 15), (25, 30, 15), (5, 30, 0)])
def test_last_packet_is_that_of_either_direction(seen: int, reply_seen: int, idle: int) -> None:
    """One that came when the connection was just ending is no later than its end."""
    (flow,) = told(record(seen=NOW - seen * HZ & 0xFFFFFFFF, reply_seen=NOW - reply_seen * HZ & 0xFFFFFFFF))
    assert flow["ended"] - flow["last"] == pytest.approx(idle, abs=0.01)


def test_state_tells_a_clean_close_from_a_timeout() -> None:
    fins = BITS["FLOW_SENT_FIN"] | BITS["FLOW_HEARD_FIN"]
    talking = 6 | BITS["FLOW_SENT_ACK"] | BITS["FLOW_HEARD_ACK"]
    closed, idle, stream = told(
        record(state=talking | fins), record(state=talking), record(state=17 | BITS["FLOW_HEARD_ACK"])
    )
    assert [flow["state"] for flow in (closed, idle, stream)] == [
        "tcp_time_wait",
        "tcp_established",
        "udp_stream",
    ]


def test_names_of_what_it_belonged_to() -> None:
    elsewhere = record(state=BITS["FLOW_HAS_SERVICE"] | BITS["FLOW_HAS_NAT"], nat=4, why=2)
    elsewhere["client"]["dport"] = 81
    served, translated, neither, gone = told(
        record(state=BITS["FLOW_HAS_SERVICE"]),
        record(state=BITS["FLOW_HAS_NAT"], nat=3),
        record(nat=3),
        elsewhere,
    )
    assert (served["service"], served["endpoint"], served["nat"]) == ("web", "10.0.0.9:8080", None)
    assert (translated["service"], translated["nat"]) == (None, "out")
    assert (neither["service"], neither["endpoint"], neither["nat"]) == (None, None, None)
    assert (gone["service"], gone["endpoint"], gone["nat"]) == ("gone", "10.0.0.9:8080", "gone")
    assert gone["why"] == "endpoint gone"


def test_names_of_what_it_belonged_to_over_ipv6() -> None:
    row = record(state=BITS["FLOW_HAS_SERVICE"])
    for side, address, port in (("client", DNS, 53), ("leaves", ip_address("fd00::9"), 5353)):
        row[side]["dst"], row[side]["dport"] = list(address.packed), port
    row["client"]["family"], row["client"]["proto"] = 6, 17
    (flow,) = told(row)
    assert (flow["service"], flow["endpoint"]) == ("dns", "[fd00::9]:5353")


def test_counters_are_whole() -> None:
    (flow,) = told(record(packets=1 << 40, bytes=(1 << 63) + 1, reply_packets=2, reply_bytes=3))
    assert (flow["packets"], flow["bytes"]) == (1 << 40, (1 << 63) + 1)
    assert (flow["reply_packets"], flow["reply_bytes"]) == (2, 3)


# ---- who follows ----


class Recording:
    """A data path in which nothing ends."""

    def __init__(self) -> None:
        self.recorded = False

    @contextmanager
    def records(self) -> Iterator[Callable[[], Any]]:
        self.recorded = True
        try:
            yield lambda: np.zeros(0, RECORD)
        finally:
            self.recorded = False


def test_one_of_those_that_follow_at_the_same_moment_is_accepted() -> None:
    async def both() -> None:
        datapath = Recording()
        followers = Followers(datapath.records, lambda _records: b"", "somebody follows")
        first = await followers.follow()
        with pytest.raises(FilterError, match="somebody follows"):
            await followers.follow()
        assert datapath.recorded
        await first.aclose()
        assert not datapath.recorded
        await (await followers.follow()).aclose()

    asyncio.run(both())


def test_following_ends_with_the_daemon() -> None:
    async def end() -> list[bytes]:
        datapath = Recording()
        followers = Followers(datapath.records, lambda _records: b"", "somebody follows")
        found = await followers.follow()

        async def read() -> list[bytes]:
            return [line async for line in found]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        await followers.end()
        assert not datapath.recorded
        followers.begin_again()
        again = await followers.follow()
        assert datapath.recorded
        await again.aclose()
        return await reading

    assert asyncio.run(end()) == []
