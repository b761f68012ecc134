# SPDX-License-Identifier: Apache-2.0
"""Connections chosen, sorted, summed up and written out; services and reasons as the API tells them."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from clearway.api.control import FilterError
from clearway.api.views import FlowFilter, FlowView
from clearway.compiler import HostFacts, compile_tables
from clearway.daemon import report
from clearway.daemon.flowlist import PIECE, Names, Use, choose, pieces, usage
from clearway.datapath import Attachment, Counter, Counters
from clearway.datapath.flows import CONNECTION, GONE, NONE
from clearway.model import config_from_data

ESTABLISHED, UDP_STREAM = 2, 7
NAMES = Names(
    services={1: "web", 2: "dns"},
    endpoints={10: "10.0.0.2:8080", 11: "10.0.0.3:8080", 12: "[2001:db8::2]:53"},
    nats={5: "out"},
    states={ESTABLISHED: "tcp_established", UDP_STREAM: "udp_stream", 0: "tcp_syn_sent"},
)


def connection(client: str, destination: str = "203.0.113.10", **fields: Any) -> np.ndarray:
    row = np.zeros(1, CONNECTION)
    row["family"] = ip_address(client).version
    row["proto"], row["state"] = 6, ESTABLISHED
    row["service"] = row["endpoint"] = row["nat"] = NONE
    for column, text in (("client", client), ("destination", destination)):
        packed = ip_address(text).packed
        row[column][0, : len(packed)] = list(packed)
    for name, value in fields.items():
        row[name] = value
    return row


FLOWS = np.concatenate(
    [
        connection(
            "198.51.100.1", service=1, endpoint=10, bytes=100, packets=1, reply_bytes=50, reply_packets=2
        ),
        connection("198.51.100.2", service=1, endpoint=11, bytes=900, packets=9),
        connection("10.1.2.3", "192.0.2.1", proto=17, state=UDP_STREAM, nat=5, bytes=5, packets=1),
        connection("2001:db8::9", "2001:db8::1", proto=17, state=UDP_STREAM, service=2, endpoint=12, bytes=7),
    ]
)


def clients(wanted: FlowFilter) -> list[str]:
    chosen, _matched = choose(FLOWS, wanted, NAMES)
    document = json.loads(b"".join(pieces(chosen, NAMES, matched=0, total=0)))
    return [flow["client"] for flow in document["flows"]]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (FlowFilter(), ["198.51.100.2", "198.51.100.1", "2001:db8::9", "10.1.2.3"]),
        (FlowFilter(limit=1), ["198.51.100.2"]),
        (FlowFilter(limit=0), []),
        (FlowFilter(service="web"), ["198.51.100.2", "198.51.100.1"]),
        (FlowFilter(service="web", endpoint="10.0.0.2"), ["198.51.100.1"]),
        (FlowFilter(endpoint="[2001:db8::2]:53"), ["2001:db8::9"]),
        (FlowFilter(endpoint="2001:db8::2"), ["2001:db8::9"]),
        (FlowFilter(nat="out"), ["10.1.2.3"]),
        (FlowFilter(protocol="UDP"), ["2001:db8::9", "10.1.2.3"]),
        (FlowFilter(protocol="icmp"), []),
        (FlowFilter(state="established"), ["198.51.100.2", "198.51.100.1"]),
        (FlowFilter(state="udp_stream"), ["2001:db8::9", "10.1.2.3"]),
        (FlowFilter(address="10.1.0.0/16"), ["10.1.2.3"]),
        (FlowFilter(address="203.0.113.10"), ["198.51.100.2", "198.51.100.1"]),
        (FlowFilter(address="2001:db8::/64"), ["2001:db8::9"]),
        (FlowFilter(address="::/0"), ["2001:db8::9"]),
        (FlowFilter(service="web", protocol="udp"), []),
    ],
)
def test_filters(wanted: FlowFilter, found: list[str]) -> None:
    assert clients(wanted) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (FlowFilter(service="wbe"), "there is no service wbe; services: dns, web"),
        (FlowFilter(endpoint="10.9.9.9"), "there is no endpoint 10.9.9.9; endpoints: "),
        (FlowFilter(nat="web"), "there is no NAT rule web; rules: out"),
        (
            FlowFilter(protocol="pigeon"),
            "there are no flows of protocol pigeon; protocols: ah,",
        ),
        (
            FlowFilter(state="open"),
            "there is no state open; states: tcp_established, tcp_syn_sent, udp_stream",
        ),
        (FlowFilter(owner="nobody"), "there is no owner nobody; owners: clearway, linux"),
        (FlowFilter(address="10.0.0"), "10.0.0 is neither an address nor a prefix"),
    ],
)
def test_filter_that_cannot_match_says_what_could(wanted: FlowFilter, message: str) -> None:
    with pytest.raises(FilterError, match="^" + message.replace(".", r"\.")):
        choose(FLOWS, wanted, NAMES)


def test_flow_is_written_as_the_api_promises() -> None:
    chosen, matched = choose(FLOWS, FlowFilter(service="web", limit=1), NAMES)
    document = json.loads(b"".join(pieces(chosen, NAMES, matched=matched, total=len(FLOWS))))
    assert (document["matched"], document["total"]) == (2, 4)
    flow = FlowView(**document["flows"][0])
    assert (flow.protocol, flow.state, flow.service, flow.endpoint, flow.nat) == (
        "tcp",
        "tcp_established",
        "web",
        "10.0.0.3:8080",
        None,
    )


def test_flow_that_was_learned_from_linux_is_its_own() -> None:
    flows = np.concatenate([connection("198.51.100.1", flags=1 << 30 | 6), connection("198.51.100.2")])
    names = Names(adopted=1 << 30)
    owners = {}
    for owner in ("linux", "clearway"):
        chosen, matched = choose(flows, FlowFilter(owner=owner), names)
        [flow] = json.loads(b"".join(pieces(chosen, names, matched=matched, total=2)))["flows"]
        owners[flow["client"]] = flow["owner"]
    assert owners == {"198.51.100.1": "linux", "198.51.100.2": "clearway"}


def test_flow_of_something_removed_says_so() -> None:
    flows = connection("198.51.100.1", service=GONE, endpoint=GONE, nat=77)
    [flow] = json.loads(b"".join(pieces(flows, NAMES, matched=1, total=1)))["flows"]
    assert (flow["service"], flow["endpoint"], flow["nat"]) == ("gone", "gone", "gone")


@pytest.mark.parametrize("number", [0, 1, PIECE, PIECE + 1, 2 * PIECE])
def test_long_list_comes_in_pieces_and_is_one_document(number: int) -> None:
    parts = list(pieces(np.zeros(number, CONNECTION), NAMES, matched=number, total=number))
    assert len(parts) == 2 + -(-number // PIECE)
    assert len(json.loads(b"".join(parts))["flows"]) == number


def test_usage_sums_both_directions() -> None:
    assert usage(FLOWS, "service") == {1: Use(2, 12, 1050), 2: Use(1, 0, 7)}
    assert usage(FLOWS, "nat") == {5: Use(1, 1, 5)}
    assert usage(FLOWS[:0], "endpoint") == {}


# ---- reports ----

CONFIG = config_from_data(
    {
        "interfaces": [{"name": "eth0", "hook": "xdp"}, {"name": "eth1"}, {"name": "eth2", "hook": "tc"}],
        "services": [
            {
                "name": "web",
                "address": "203.0.113.10",
                "port": 80,
                "protocol": "tcp",
                "endpoints": [
                    {"address": "10.0.0.2", "port": 8080, "weight": 3},
                    {"address": "10.0.0.3", "port": 8080},
                    {"address": "10.0.0.4", "port": 8080, "drain": True},
                    {"address": "10.0.0.5", "port": 8080, "weight": 0},
                ],
            }
        ],
        "nat": [
            {"name": "out", "source": "10.0.0.0/8", "interface": "eth0", "masquerade": True},
            {"name": "pool", "source": "10.1.0.0/16", "interface": "eth0", "pool": "198.51.100.8/30"},
        ],
    }
)
IFINDEXES = {"eth0": 2, "eth1": 3, "eth2": 4}
TABLES = compile_tables(CONFIG, HostFacts(32768, 60999, IFINDEXES))


def test_names_lead_back_from_ids_to_the_configuration() -> None:
    names = report.names(CONFIG, TABLES, IFINDEXES, {})
    assert list(names.services.values()) == ["web"]
    assert sorted(names.endpoints.values()) == [f"10.0.0.{host}:8080" for host in (2, 3, 4, 5)]
    assert sorted(names.nats.values()) == ["out", "pool"]


def test_endpoints_tell_state_share_and_use() -> None:
    ids = {str(row.address): row.id for row in TABLES.endpoints}
    used = {ids["10.0.0.2"]: Use(7, 70, 700)}
    found = {
        view.address: view for view in report.endpoints(CONFIG, TABLES, used, {ids["10.0.0.2"]: 9}).endpoints
    }
    assert [view.state for view in found.values()] == ["active", "active", "draining", "idle"]
    assert found["10.0.0.2"].share == pytest.approx(0.75, abs=0.01)
    assert found["10.0.0.4"].share == found["10.0.0.5"].share == 0
    assert (found["10.0.0.2"].flows, found["10.0.0.2"].opened, found["10.0.0.2"].bytes) == (7, 9, 700)
    assert report.endpoints(CONFIG, TABLES, {}, {}, "other").endpoints == []


def test_services_sum_their_endpoints_up() -> None:
    opened = {row.id: 5 for row in TABLES.endpoints}
    [view] = report.services(CONFIG, TABLES, {TABLES.services[0].id: Use(3, 30, 300)}, opened).services
    assert (view.endpoints, view.taking, view.opened, view.flows, view.bytes) == (4, 2, 20, 3, 300)


def test_opened_sums_over_cpus() -> None:
    values = np.zeros((2, 8), [("connections", "<u8")])
    values["connections"][0, :4] = 1
    values["connections"][1, :4] = 2
    assert report.opened(values, TABLES.endpoints) == {row.id: 3 for row in TABLES.endpoints}


def test_nat_rules_wait_for_their_interface() -> None:
    here = report.nats(CONFIG, TABLES, IFINDEXES, {}).nat
    assert [(view.name, view.to, view.state) for view in here] == [
        ("out", "masquerade", "active"),
        ("pool", "198.51.100.8-198.51.100.11", "active"),
    ]
    away = report.nats(CONFIG, TABLES, {"lo": 1}, {}).nat
    assert [view.state for view in away] == ["waiting", "waiting"]


def test_interfaces_tell_hook_and_why() -> None:
    attachments = {
        "eth0": Attachment("eth0", 2, "xdp", "tcx", "ice", False),
        "eth1": Attachment("eth1", 3, "tc", "tcx", "veth", True),
    }
    views = report.interfaces(CONFIG, attachments, {"eth0": 2, "eth1": 3}, lambda _name: "because").interfaces
    assert [(view.name, view.state, view.hook) for view in views] == [
        ("eth0", "attached", "xdp"),
        ("eth1", "failed", ""),
        ("eth2", "absent", ""),
    ]
    assert [view.reason for view in views] == ["because", "because", "there is no such interface now"]


def test_reasons_are_grouped_by_verdict_and_add_up() -> None:
    counted = {"drop_no_port": 1, "punt_icmp": 2, "forward_new": 3, "forward_flow": 40, "answer_reset": 5}
    counters = Counters(Counter(51, 5100), {name: Counter(n, n * 100) for name, n in counted.items()})
    found = report.reasons(counters)
    assert [view.reason for view in found.reasons] == [
        "forward_flow",
        "forward_new",
        "answer_reset",
        "punt_icmp",
        "drop_no_port",
    ]
    assert (found.accounted_packets, found.accounted_bytes) == (51, 5100)
    assert (found.received_packets, found.received_bytes) == (51, 5100)
