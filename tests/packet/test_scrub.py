# SPDX-License-Identifier: Apache-2.0
"""Blocklists and allowlists, packet by packet: by its source alone, before anything is known of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from scapy.layers.inet import IPOption_RR
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.packet import Raw

from clearway.compiler import Clock, identity_of
from clearway.daemon.apply import read_tables
from clearway.datapath import Counter
from clearway.model import read_list
from tests.packet.addresses import FRONT, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.firewall import firewall, rule, syn, through, to_node
from tests.packet.frames import echo, frame, udp
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node


def block(*prefixes: str, allow: tuple[str, ...] = ()) -> dict[str, Any]:
    lists: dict[str, Any] = {"blocklists": [{"name": "bad", "prefixes": list(prefixes)}]}
    if allow:
        lists["allowlists"] = [{"name": "good", "prefixes": list(allow)}]
    return lists


def listed(node: Node, name: str) -> Counter:
    """What a list has decided about."""
    assert node.tables.scrub is not None
    number = node.tables.scrub.numbers[identity_of(name)]
    values, _ = node.datapath.table("listed_v1").lookup([number])
    return Counter(int(values["packets"].sum()), int(values["bytes"].sum()))


def around(net: Net) -> str:
    """A prefix that the client is in."""
    length = 24 if net.family == 4 else 64
    return f"{net.networks[FRONT]}{'0' if net.family == 4 else ''}/{length}"


KINDS: dict[str, Callable[[Net], bytes]] = {
    "tcp": lambda net: frame(FRONT, net.client, net.vip, syn()),
    "udp": lambda net: frame(FRONT, net.client, net.vip, udp(5, 53)),
    "forwarded": lambda net: through(net, syn()),
    "to the node": lambda net: to_node(net, udp(5, 6)),
    "ping": lambda net: to_node(net, echo(net.family, 7)),
    "gre": lambda net: through(net, GRE() / Raw(bytes(20))),
    "options": lambda net: (
        frame(FRONT, net.client, net.inside, syn(), options=IPOption_RR(routers=["0.0.0.0"] * 2))
        if net.family == 4
        else frame(FRONT, net.client, net.inside, IPv6ExtHdrHopByHop() / syn())
    ),
    "extension": lambda net: (
        through(net, udp(5, 53))
        if net.family == 4
        else frame(FRONT, net.client, net.vip, IPv6ExtHdrDestOpt() / udp(5, 53))
    ),
    "later fragment": lambda net: (
        frame(FRONT, net.client, net.vip, Raw(bytes(64)), frag=10, proto=17)
        if net.family == 4
        else frame(FRONT, net.client, net.vip, IPv6ExtHdrFragment(offset=10, nh=17) / Raw(bytes(64)))
    ),
    "multicast": lambda net: frame(
        FRONT, net.client, "224.0.0.251" if net.family == 4 else "ff02::fb", udp(1, 5353)
    ),
    "cut short": lambda net: through(net, Raw(b"1234"), **({"proto": 6} if net.family == 4 else {"nh": 6})),
}


@pytest.mark.parametrize("kind", KINDS)
def test_blocked_source_is_dropped_whatever_it_sends(node: Node, net: Net, kind: str) -> None:
    sent = KINDS[kind](net)
    node.apply([service(net)])
    before = node.send(sent)
    assert before.reason != "drop_blocklist"
    node.flows.clear()
    node.apply([service(net)], scrub=block(around(net)))
    assert node.send(sent).reason == "drop_blocklist"
    assert node.flows.entries() == 0
    assert listed(node, "bad") == Counter(1, len(sent))
    node.apply([service(net)])
    assert node.send(sent).reason == before.reason


def test_only_blocked_sources_are_dropped(node: Node, net: Net) -> None:
    """Not who is sent to, nor who stands beside."""
    near = net.host(FRONT, 51)
    node.apply([service(net)], scrub=block(near, net.vip))
    assert node.send(frame(FRONT, net.client, net.vip, syn())).reason == "forward_new"
    assert node.send(frame(FRONT, near, net.vip, syn())).reason == "drop_blocklist"
    assert listed(node, "bad").packets == 1


def test_allowed_source_passes_whatever_is_blocked(node: Node, net: Net) -> None:
    node.apply([service(net)], scrub=block(around(net), allow=(net.client,)))
    sent = frame(FRONT, net.client, net.vip, syn())
    assert node.send(sent).reason == "forward_new"
    assert node.send(frame(FRONT, net.host(FRONT, 51), net.vip, syn())).reason == "drop_blocklist"
    assert listed(node, "good") == Counter(1, len(sent))
    assert listed(node, "bad").packets == 1


def test_tagged_frame_is_dropped_as_well(node: Node, net: Net) -> None:
    """What the priority is of what has no VLAN is no way around."""
    node.apply([service(net)], scrub=block(around(net)))
    plain = Ether(KINDS["tcp"](net))
    tagged = Ether(src=plain.src, dst=plain.dst) / Dot1Q(vlan=0, prio=5) / plain.payload
    assert node.send(bytes(tagged)).reason == "drop_blocklist"


def odd(net: Net) -> dict[str, bytes]:
    """What only Linux can carry, and what nobody can read."""
    plain = Ether(KINDS["tcp"](net))
    tags = Dot1Q(vlan=0) / Dot1Q(vlan=0) / Dot1Q(vlan=0)
    group = "224.0.0.251" if net.family == 4 else "ff02::fb"
    cut = frame(FRONT, net.client, group, udp(1, 5353))
    return {
        "three tags": bytes(Ether(src=plain.src, dst=plain.dst) / tags / plain.payload),
        "multicast whose length is wrong": cut[:-3],
        "multicast datagram cut short": frame(
            FRONT, net.client, group, Raw(b"1234"), **({"proto": 17} if net.family == 4 else {"nh": 17})
        ),
        **{name: KINDS[name](net) for name in ("gre", "options", "multicast", "cut short", "later fragment")},
    }


def test_who_is_not_blocked_ends_as_without_lists(node: Node, net: Net) -> None:
    """However odd it is: also what a NAT rule would claim by its source."""
    rule_of_all = {**masquerade(net), "source": "0.0.0.0/0" if net.family == 4 else "::/0"}
    node.apply([service(net)], nat=[rule_of_all])
    before = {name: node.send(sent).reason for name, sent in odd(net).items()}
    node.apply([service(net)], nat=[rule_of_all], scrub=block(net.host(FRONT, 51)))
    assert {name: node.send(sent).reason for name, sent in odd(net).items()} == before


@PROTOCOLS
def test_connection_of_a_source_that_is_blocked_stops_and_goes_on_later(
    node: Node, net: Net, proto: str
) -> None:
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto).open()
    assert talk.client().reason == "forward_flow"
    node.apply([service(net, protocol=proto)], scrub=block(around(net)))
    assert talk.client().reason == "drop_blocklist"
    assert node.flows.entries() == 2
    assert talk.server().verdict == "forward"
    node.apply([service(net, protocol=proto)])
    assert talk.client().verdict == "forward"
    assert talk.client().reason == "forward_flow"


def test_firewall_is_not_asked_about_what_is_blocked(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()), scrub=block(around(net)))
    assert node.send(through(net, syn())).reason == "drop_blocklist"
    node.apply(firewall=firewall(rule(), default="accept"), scrub=block(net.host(FRONT, 51)))
    assert node.send(through(net, syn())).reason == "forward_new"


def test_each_list_counts_its_own(node: Node, net: Net) -> None:
    """Of overlapping entries the list counts that stands first; one that stays goes on counting."""
    lists = [
        {"name": "first", "prefixes": [net.host(FRONT, 51)]},
        {"name": "second", "prefixes": [around(net)]},
    ]
    node.apply(scrub={"blocklists": lists})
    for number in (50, 51, 52):
        assert node.send(frame(FRONT, net.host(FRONT, number), net.vip, syn())).reason == "drop_blocklist"
    assert [listed(node, name).packets for name in ("first", "second")] == [1, 2]
    node.apply(scrub={"blocklists": [{"name": "third", "prefixes": [around(net)]}, lists[0]]})
    assert node.send(frame(FRONT, net.host(FRONT, 51), net.vip, syn())).reason == "drop_blocklist"
    assert [listed(node, name).packets for name in ("first", "third")] == [1, 1]
    node.apply(scrub={"blocklists": [*reversed(lists)]})
    assert [listed(node, name).packets for name in ("first", "second")] == [1, 0]


def test_entries_expire(node: Node, net: Net) -> None:
    """Also the one of a shorter prefix: what lives longer counts."""
    entries = [{"prefix": net.client, "expires": 1100}, {"prefix": around(net), "expires": 1500}]
    content = read_list("\n".join(map(json.dumps, entries)).encode(), "bad.txt")
    sent = frame(FRONT, net.client, net.vip, syn())

    def reason(seconds_ago: int) -> str:
        """As long after the lists were compiled, at 1,000 seconds since the epoch."""
        kernel = node.datapath.clock()
        clock = Clock(kernel.jiffies - seconds_ago * kernel.hz, 1000.0, kernel.hz)
        node.apply(
            scrub={"blocklists": [{"name": f"bad-{seconds_ago}", "file": "/bad.txt"}]},
            lists={"/bad.txt": content},
            clock=clock,
        )
        return node.send(sent).reason

    assert [reason(ago) for ago in (0, 90, 490)] == ["drop_blocklist"] * 3
    assert reason(520) == "punt_not_ours"


def test_daemon_that_starts_anew_finds_the_lists_in_force(node: Node, net: Net) -> None:
    scrub = block(around(net), allow=(net.client,))
    tables = node.apply([service(net)], scrub=scrub)
    found = read_tables(node.datapath)
    assert found.scrub == tables.scrub
    node.tables = found
    assert node.apply([service(net)], scrub=scrub).scrub == tables.scrub
    assert node.tables.epoch == tables.epoch
    # the same lists, another epoch
    node.apply(scrub=scrub)
    assert node.tables.epoch != tables.epoch
    assert node.send(frame(FRONT, net.host(FRONT, 51), net.vip, syn())).reason == "drop_blocklist"
    assert node.send(frame(FRONT, net.client, net.vip, syn())).reason == "punt_not_ours"


def test_lists_are_looked_up_exactly(node: Node, net: Net) -> None:
    """Random prefixes of all lengths, and addresses at their edges."""
    source, bits = random.Random(5), 32 if net.family == 4 else 128
    networks = []
    for _ in range(300):
        length = source.choice([bits, bits, bits - 1, bits // 2, source.randrange(8, bits + 1)])
        first = source.getrandbits(bits) >> bits - length << bits - length
        networks.append((first, first | (1 << bits - length) - 1, length))
    make = IPv4Address if net.family == 4 else IPv6Address
    node.apply(scrub=block(*(f"{make(first)}/{length}" for first, _last, length in networks)))
    asked = [source.getrandbits(bits) for _ in range(50)]
    for first, last, _length in source.sample(networks, 60):
        asked += [first, last, (first - 1) % (1 << bits), (last + 1) % (1 << bits)]
    for address in asked:
        blocked = any(first <= address <= last for first, last, _length in networks)
        out = node.send(frame(FRONT, str(make(address)), net.vip, syn()))
        assert (out.reason == "drop_blocklist") == blocked, make(address)
