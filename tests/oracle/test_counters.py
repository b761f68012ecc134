# SPDX-License-Identifier: Apache-2.0
"""What clearway has carried around Linux' rules is added to what they have counted: both together are what
they count in the lab where Linux is alone, to the byte, whatever becomes of rules and connections meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from clearway.api.views import LinuxCounterView
from clearway.daemon.linux_counters import linux_counters
from clearway.linux import nftables
from clearway.linux.ruleset import read_ruleset
from tests.oracle.case import Flow, Protocol, Run, Send
from tests.oracle.cases import closing, opening
from tests.oracle.lab import Pair, Side, packets
from tests.oracle.network import GATEWAY, REMOTE_NETWORK, SEGMENTS, address
from tests.oracle.traffic import Conversation

NFT = """
table inet t {
  counter every { }
  chain early {
    type filter hook prerouting priority -150; policy accept;
    counter
    iifname "lan0" counter comment "from inside"
    meta l4proto tcp tcp sport 80 counter
  }
  chain allowed {
    type filter hook forward priority 0; policy drop;
    ct state established counter jump known
    meta l4proto { tcp, udp } counter accept
  }
  chain known {
    counter name "every"
    iifname "lan0" oifname "wan0" counter accept
    counter accept
  }
  chain late {
    type filter hook postrouting priority 300; policy accept;
    ip saddr 10.1.2.77 counter
    ip6 saddr fd00:1:2::4d counter
    oifname "lan0" counter
  }
  chain translated {
    type nat hook postrouting priority 100; policy accept;
    oifname "wan0" snat ip to 10.1.2.77
    oifname "wan0" snat ip6 to fd00:1:2::4d
  }
}
"""
IPTABLES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KNOWN - [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED -j KNOWN
-A FORWARD -p udp -j ACCEPT
-A KNOWN -p tcp -m tcp --dport 80 -j RETURN
-A KNOWN -i wan0 -o lan0 -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o wan0
COMMIT
"""
REFUSED_S = 0.03
"""What was left to Linux is asked about again after so long (ADOPT_REFUSED_MS)."""
PATIENCE_S = 5.0
SIZES = (0, 1, 17, 700, 1300)  # bytes of payload
SOME = 4


class Talk:
    """A connection through both labs."""

    def __init__(self, pair: Pair, flow: Flow) -> None:
        self._pair, self._flow = pair, flow
        ident = next(pair.idents)
        self._ends = [Conversation([flow], ident) for _side in pair.sides]

    def open(self) -> None:
        for step in opening(0, self._flow):
            self.say(step)

    def close(self) -> None:
        for step in closing(0, self._flow):
            self.say(step)

    def on(self) -> None:
        """Data in both directions, more of it in the one."""
        for size in SIZES:
            time.sleep(REFUSED_S)
            for _ in range(SOME):
                self.say(Send(0, "data", size=size))
            self.say(Send(0, "data", True, size=size))

    def say(self, step: Send | Run) -> None:
        if isinstance(step, Run):
            both(self._pair, step.command)
            return
        for side, end in zip(self._pair.sides, self._ends, strict=True):
            for injection in end.say(step):
                side.inject(injection)
        for end, arrived in zip(self._ends, self._pair.settled(), strict=True):
            end.learn(step, packets(arrived))


def both(pair: Pair, command: str, stdin: str = "") -> None:
    for side in pair.sides:
        done = side.command(Run(command, stdin))
        assert not done.returncode, done.stderr


def wait_until(what: str, happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(REFUSED_S)


def proved(pair: Pair) -> None:
    """Return when the rules that are in force now may be carried around."""

    def is_proved() -> bool:
        with pair.fast.router.entered():
            now = nftables.generation()
        standing = pair.daemon.json("status")["adoption"]
        return bool(standing["generation"] == now and not standing["why"])

    wait_until("the rules are not proved", is_proved)


def load(pair: Pair, family: int, rules: str) -> None:
    pair.reset(network_too=True)
    if rules == "nft":
        both(pair, "nft -f -", NFT)
    else:
        both(pair, "iptables-nft-restore" if family == 4 else "ip6tables-nft-restore", IPTABLES)
    proved(pair)


def of_linux(pair: Pair) -> dict[str, tuple[int, int]]:
    """Of the lab where Linux is alone."""
    with pair.plain.router.entered():
        ruleset = read_ruleset()
    assert ruleset is not None
    return {
        f"{one.place.table} {one.chain} {one.place.handle} {one.text}": (one.packets, one.bytes)
        for one in linux_counters(ruleset).counters
    }


def of_both(pair: Pair) -> tuple[dict[str, tuple[int, int]], int]:
    """Of the other one: the sums, and of how many packets clearway has added the most to a counter."""
    found = [LinuxCounterView(**one) for one in pair.daemon.json("get", "rules")["linux"]]
    sums = {f"{one.table} {one.chain} {one.handle} {one.rule}": (one.packets, one.bytes) for one in found}
    return sums, max((one.carried_packets for one in found), default=0)


def settled(pair: Pair) -> int:
    """Packets that clearway has carried around a counter that all of them would have met."""
    sums, most = of_both(pair)
    assert sums == of_linux(pair)
    return most


@pytest.fixture(params=["nft", "iptables"])
def rules(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param  # type: ignore[no-any-return]


def test_counters_are_those_of_linux_alone(pair: Pair, family: int, rules: str, protocol: Protocol) -> None:
    load(pair, family, rules)
    talk = Talk(pair, Flow(family, protocol, "lan0", 0, 0, 20000, 80))
    talk.open()
    talk.on()
    assert settled(pair) > len(SIZES) * SOME
    talk.close()
    settled(pair)


CHANGES = {
    "nft": ("nft insert rule inet t allowed counter", "nft flush chain inet t late"),
    "iptables": ("-I FORWARD -m conntrack --ctstate ESTABLISHED", "-D KNOWN 2"),
}


def test_rules_come_and_go(pair: Pair, family: int, rules: str) -> None:
    """Each is credited with what was carried while it was there, and no rule loses what it had."""
    load(pair, family, rules)
    talk = Talk(pair, Flow(family, "tcp", "lan0", 0, 0, 20001, 80))
    talk.open()
    talk.on()
    tool = "" if rules == "nft" else ("iptables-nft " if family == 4 else "ip6tables-nft ")
    before = settled(pair)
    for change in CHANGES[rules]:
        both(pair, tool + change)
        proved(pair)
        talk.on()
        settled(pair)
    assert settled(pair) > 2 * before


def test_a_table_made_again_counts_anew(pair: Pair, family: int) -> None:
    load(pair, family, "nft")
    talk = Talk(pair, Flow(family, "tcp", "lan0", 0, 0, 20002, 80))
    talk.open()
    talk.on()
    both(pair, "nft -f -", f"delete table inet t{NFT}")
    proved(pair)
    assert settled(pair) == 0
    talk.on()
    assert settled(pair) > 0


def test_deleted_connections_are_not_forgotten(pair: Pair, family: int, rules: str) -> None:
    load(pair, family, rules)
    for port in range(20010, 20013):
        talk = Talk(pair, Flow(family, "tcp", "lan0", 0, 0, port, 80))
        talk.open()
        talk.on()
        both(pair, f"conntrack -D -f ipv{family} -p tcp")
    assert settled(pair) > 3 * len(SIZES) * SOME
    assert pair.daemon.json("get", "flows", "--owner", "linux")["flows"] == []


def test_segments_in_one_packet_count_as_linux_counts_them(pair: Pair, family: int) -> None:
    load(pair, family, "nft")
    talk = Talk(pair, Flow(family, "tcp", "lan0", 0, 0, 20020, 80))
    talk.open()
    talk.on()
    before = settled(pair)
    if pair.hook == "tc":  # XDP is given none
        for _ in range(SOME):
            talk.say(Send(0, "data", size=5000, shape="gso"))
        assert settled(pair) == before + SOME


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_daemon_that_begins_anew_loses_nothing(pair: Pair, family: int, rules: str, end: str) -> None:
    """Connections go on, end and begin while none is there, and rules change."""
    load(pair, family, rules)
    over, on = (Talk(pair, Flow(family, "tcp", "lan0", 0, 0, port, 80)) for port in (20050, 20051))
    for talk in (over, on):
        talk.open()
        talk.on()
    before = settled(pair)
    over.on()
    getattr(pair.daemon, end)()
    on.on()
    over.close()
    tool = "" if rules == "nft" else ("iptables-nft " if family == 4 else "ip6tables-nft ")
    both(pair, tool + CHANGES[rules][0])
    on.on()
    pair.daemon.start()
    proved(pair)
    on.on()
    assert settled(pair) > 2 * before


def received_and_sent(side: Side) -> dict[str, tuple[int, int]]:
    links = json.loads(side.router.run("ip", "-j", "-s", "link").stdout)
    counts = {link["ifname"]: link["stats64"] for link in links}
    return {name: (counts[name]["rx"]["packets"], counts[name]["tx"]["packets"]) for name in SEGMENTS}


def test_devices_count_every_packet(pair: Pair, family: int) -> None:
    load(pair, family, "nft")
    talk = Talk(pair, Flow(family, "tcp", "lan0", 0, 0, 20040, 80))
    talk.open()
    before = [received_and_sent(side) for side in pair.sides]
    talk.on()
    after = [received_and_sent(side) for side in pair.sides]
    plain, fast = (
        {name: (rx - was[name][0], tx - was[name][1]) for name, (rx, tx) in now.items()}
        for was, now in zip(before, after, strict=True)
    )
    assert fast == plain
    assert plain["lan0"] == (len(SIZES) * SOME, len(SIZES))


def test_route_changes_part_what_was_carried(pair: Pair, family: int) -> None:
    """What went out by an interface stays with the rules about that interface."""
    load(pair, family, "nft")
    talk = Talk(pair, Flow(family, "tcp", "lan0", 0, 1, 20030, 80))
    talk.open()
    talk.on()
    gateway, network = address("wan1", GATEWAY, family), REMOTE_NETWORK[family]
    both(pair, f"ip -{family} route replace {network} via {gateway} dev wan1")
    talk.on()
    settled(pair)
