# SPDX-License-Identifier: Apache-2.0
"""A change of rules, routes, neighbours or links holds for all packets sent after its command returned.

Numbered packets of an established, translated connection go through the accelerated lab all the time. One
that was sent (by the clock that all processes share) after the command had ended must meet what it has said.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pytest

from clearway.lab.run import stop, wait_until
from tests.oracle.case import Flow, Run, Send
from tests.oracle.cases import opening, talking
from tests.oracle.lab import Pair, Side, frame_on, packets, restore
from tests.oracle.network import FREE_PREFERENCE, GATEWAY, HOSTS, address, addresses
from tests.oracle.play import NO_RULES
from tests.oracle.stream import MARK
from tests.oracle.traffic import Conversation

GENERATOR = Path(__file__).with_name("stream.py")
RUNNING = 0.1  # seconds of traffic before and after a change
LONGEST = 20  # seconds after which a generator ends itself
ENOUGH = 50  # packets in each of those times, on a machine that others use as well
OTHER_MAC = "02:00:00:00:00:77"
RULES = """
table inet t {
  set blocked4 { type ipv4_addr; }
  set blocked6 { type ipv6_addr; }
  chain allowed {
    type filter hook forward priority 0; policy drop;
    ip6 daddr @blocked6 drop
    ip daddr @blocked4 drop
    meta l4proto tcp counter accept
  }
  chain back {
    type nat hook postrouting priority 100;
    snat ip to 10.1.2.77
    snat ip6 to fd00:1:2::4d
  }
}
"""

# ---- the stream ----


@dataclass(frozen=True)
class Packet:
    """One that has arrived. `sent`: nanoseconds of CLOCK_MONOTONIC."""

    number: int
    sent: int
    segment: str
    mac: str


def _packet(segment: str, frame: bytes) -> Packet:
    number, sent = MARK.unpack(frame[-MARK.size :])
    return Packet(number, sent, segment, frame[:6].hex(":"))


class Stream:
    """What goes from a client on lan0 to a server on wan0, and when commands have returned meanwhile."""

    def __init__(self, side: Side, family: int) -> None:
        self._side = side
        server = address("wan0", HOSTS[0], family)
        self._words = {
            "server": server,
            "host": f"{server}/{32 if family == 4 else 128}",
            "client": address("lan0", HOSTS[0], family),
            "aside": address("wan1", GATEWAY, family),
            "family": str(family),
            "ip": f"ip -{family}",
            "daddr": "ip daddr" if family == 4 else "ip6 daddr",
            "iptables": "iptables" if family == 4 else "ip6tables",
            "forwarding": "net.ipv4.ip_forward" if family == 4 else "net.ipv6.conf.all.forwarding",
        }

    def run(self, command: str) -> int:
        """Nanoseconds of CLOCK_MONOTONIC by which it had ended. LabError when it fails."""
        handles = self._handles() if "$last" in command or "$first" in command else {}
        self._side.router.run(*Run(Template(command).substitute(self._words, **handles)).argv)
        return time.monotonic_ns()

    def _handles(self) -> dict[str, int]:
        """Of the first and the last rule that accept or refuse."""
        listed = json.loads(
            self._side.router.run("nft", "-j", "list", "chain", "inet", "t", "allowed").stdout
        )
        handles = [entry["rule"]["handle"] for entry in listed["nftables"] if "rule" in entry]
        return {"first": handles[0], "last": handles[-1]}

    def listen(self, after: int = 0) -> list[Packet]:
        """What arrives behind the router in the next RUNNING seconds and was sent after that moment."""
        time.sleep(RUNNING)
        arrived = [
            _packet(segment, frame)
            for segment, frames in self._side.received().items()
            if segment != "lan0"  # where ICMP errors quote what has not arrived
            for frame in frames
        ]
        return [packet for packet in arrived if packet.sent > after]


@contextmanager
def streaming(pair: Pair, family: int, rules: str = RULES) -> Iterator[Stream]:
    """A fresh lab in which the connection is established and the client sends without pause."""
    pair.reset(network_too=True)
    side = pair.fast
    side.router.run("nft", "-f", "-", stdin=rules)
    pair.proved()
    before = pair.carried()
    talk = Conversation([Flow(family, "tcp", "lan0", 0, 0, 20000, 80)], ident=1)
    steps = [*opening(0, Flow(family, "tcp", "lan0", 0, 0, 20000, 80)), *talking(0)]
    for step in (step for step in steps if isinstance(step, Send)):
        for injection in talk.say(step):
            side.inject(injection)
        talk.learn(step, packets(side.received()))
    # the same bytes of the stream again and again: they never leave the window
    (injection,) = talk.say(Send(0, "data", size=MARK.size))
    frame = frame_on("lan0", injection.packet).hex()
    generator = side.hosts.spawn(sys.executable, str(GENERATOR), "lan0", str(LONGEST), frame)
    try:
        stream = Stream(side, family)
        deadline = time.monotonic() + LONGEST / 2
        while len(stream.listen()) < ENOUGH:
            assert time.monotonic() < deadline, "the connection does not get through"
        if not pair.legacy():
            wait_until("clearway carries it", lambda: pair.carried() > before + ENOUGH)
        yield stream
    finally:
        stop(generator)


def numbers(arrived: Sequence[Packet]) -> list[int]:
    return [packet.number for packet in arrived]


# ---- what stops it ----

ACCEPTING = "nft add rule inet t allowed meta l4proto tcp counter accept"
STOPPING = {  # a command after which nothing passes, and one after which everything does
    "nft-insert": (
        "nft insert rule inet t allowed $daddr $server drop",
        "nft delete rule inet t allowed handle $first",
    ),
    "nft-delete": ("nft delete rule inet t allowed handle $last", ACCEPTING),
    "nft-replace": (
        "nft replace rule inet t allowed handle $last meta l4proto tcp drop",
        "nft replace rule inet t allowed handle $last meta l4proto tcp accept",
    ),
    "nft-set": (
        "nft add element inet t blocked$family '{ $server }'",
        "nft delete element inet t blocked$family '{ $server }'",
    ),
    "nft-flush": ("nft flush chain inet t allowed", ACCEPTING),
    "nft-early": (
        "nft add table inet u "
        "'{ chain c { type filter hook prerouting priority -400; meta l4proto tcp drop; }; }'",
        "nft delete table inet u",
    ),
    "iptables": ("$iptables -I FORWARD -p tcp -d $server -j DROP", "$iptables -D FORWARD 1"),
    "blackhole": ("$ip route add blackhole $host", "$ip route delete blackhole $host"),
    "policy-routing": (
        f"$ip rule add pref {FREE_PREFERENCE} from $client blackhole",
        f"$ip rule delete pref {FREE_PREFERENCE}",
    ),
    "forwarding": ("sysctl -q -w $forwarding=0", "sysctl -q -w $forwarding=1"),
}


def stopped_and_let_go(stream: Stream, stopping: str, letting_go: str) -> None:
    stopped = stream.run(stopping)
    assert numbers(stream.listen(stopped)) == []
    let_go = stream.run(letting_go)
    arrived = numbers(stream.listen(let_go))
    assert len(arrived) > ENOUGH
    assert arrived == list(range(arrived[0], arrived[-1] + 1))


@pytest.mark.parametrize("name", STOPPING)
def test_forbidden_packet_never_passes(pair: Pair, family: int, name: str) -> None:
    with streaming(pair, family) as stream:
        stopped_and_let_go(stream, *STOPPING[name])


def test_interface_that_takes_no_ipv6_takes_none(pair: Pair) -> None:
    with streaming(pair, 6) as stream:
        try:
            off = stream.run("sysctl -q -w net.ipv6.conf.lan0.disable_ipv6=1")
            assert numbers(stream.listen(off)) == []
        finally:
            stream.run("sysctl -q -w net.ipv6.conf.lan0.disable_ipv6=0")
            pair.fast.ip_batch(6, (line for line in addresses(6) if line.endswith(" lan0")))


def test_deleted_connection_is_a_new_one(pair: Pair, family: int) -> None:
    """What the rules forbid to new connections stays allowed to this one as long as conntrack knows it."""
    with streaming(pair, family) as stream:
        refused = stream.run("nft insert rule inet t allowed ct state new drop")
        assert len(stream.listen(refused)) > ENOUGH
        deleted = stream.run("conntrack -D -f ipv$family -p tcp")
        assert numbers(stream.listen(deleted + TOLD)) == []


@pytest.mark.parametrize("segment", ["lan0", "wan0"])
def test_link_goes_down_and_comes_back(pair: Pair, family: int, segment: str) -> None:
    with streaming(pair, family) as stream:
        down = stream.run(f"ip link set {segment} down")
        assert numbers(stream.listen(down)) == []
        stream.run(f"ip link set {segment} up")
        restore(pair.fast)
        assert len(stream.listen(time.monotonic_ns())) > ENOUGH


# ---- what leads it elsewhere ----

TOLD = 50_000_000
"""Nanoseconds that clearway may take to hear of what no counter of the kernel's tells: of neighbours, and of
connections that are deleted.
"""
TOLD_OF = {"neighbour"}
LEGACY = 0.3  # seconds

LEADING: dict[str, tuple[str, str, Callable[[Packet], bool]]] = {
    "route": (
        "$ip route add $host via $aside dev wan1",
        "$ip route delete $host via $aside dev wan1",
        lambda packet: packet.segment == "wan1",
    ),
    "mark": (
        "nft add chain inet t marking '{ type filter hook prerouting priority -150; meta mark set 1; }'",
        "nft delete chain inet t marking",
        lambda packet: packet.segment == "wan1",
    ),
    "neighbour": (
        f"ip neighbour replace $server lladdr {OTHER_MAC} dev wan0 nud permanent",
        "ip neighbour replace $server lladdr 02:00:00:00:02:02 dev wan0 nud permanent",
        lambda packet: packet.mac == OTHER_MAC,
    ),
}


@pytest.mark.parametrize("name", LEADING)
def test_packet_goes_where_it_is_sent_now(pair: Pair, family: int, name: str) -> None:
    leading, back, elsewhere = LEADING[name]
    told = TOLD if name in TOLD_OF else 0
    with streaming(pair, family) as stream:
        led = stream.listen(stream.run(leading) + told)
        assert len(led) > ENOUGH
        assert all(elsewhere(packet) for packet in led)
        returned = stream.listen(stream.run(back) + told)
        assert len(returned) > ENOUGH
        assert not any(elsewhere(packet) for packet in returned)


# ---- the test itself ----


def test_change_that_comes_late_is_noticed(pair: Pair, family: int) -> None:
    with streaming(pair, family) as stream:
        late = "sh -c '(sleep 0.05; nft insert rule inet t allowed meta l4proto tcp drop) >/dev/null 2>&1 &'"
        assert len(stream.listen(stream.run(late))) > ENOUGH / 2
        assert stream.listen() == []


# ---- last, because its tables stay ----


def test_forbidden_packet_never_passes_xtables(pair: Pair, family: int) -> None:
    try:
        with streaming(pair, family) as stream:
            stream.run("${iptables}-legacy -I FORWARD -p tcp -d $server -j DROP")
            time.sleep(LEGACY)  # nothing tells of these tables: clearway looks for them ten times a second
            assert numbers(stream.listen(time.monotonic_ns())) == []
            let_go = stream.run("${iptables}-legacy -D FORWARD 1")
            assert len(stream.listen(let_go)) > ENOUGH
    finally:
        for tool in ("iptables", "ip6tables"):
            pair.fast.router.run(f"{tool}-legacy-restore", stdin=NO_RULES)
