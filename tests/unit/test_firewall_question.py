# SPDX-License-Identifier: Apache-2.0
"""`clearway firewall test` on a machine: what it knows of a packet's way is filled in."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from clearway.api.control import FilterError
from clearway.api.views import FirewallDecision, FirewallQuestion
from clearway.daemon import question
from clearway.linux import rtnetlink
from clearway.linux.netlink import Conversation, NetlinkError
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import Address, Hop, Link
from clearway.model import config_from_data

VIP = "203.0.113.10"
OWN = "192.0.2.1"
LINKS = {
    number: Link(number, name, True, True, True, bytes(6), 1500) for number, name in ((1, "lan"), (2, "wan"))
}
ENDPOINTS: list[dict[str, Any]] = [{"address": f"10.0.0.{number}", "port": 8080} for number in (2, 3)]


@pytest.fixture(autouse=True)
def _routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """10.0.0.0/8 is behind lan, 198.51.100.0/24 behind wan."""

    def route(_kernel: Conversation, destination: Any) -> Hop:
        for prefix, ifindex in (("10.", 1), ("198.51.100.", 2)):
            if str(destination).startswith(prefix):
                return Hop(ifindex, destination)
        raise NetlinkError(101, "no route")

    monkeypatch.setattr(rtnetlink, "route", route)


def asked(
    packet: str, *rules: dict[str, Any], service: dict[str, Any] | None = None, **said: Any
) -> FirewallDecision:
    """By rules of a firewall that drops the rest, lan has the service's address, too."""
    services = [
        {
            "name": "web",
            "address": VIP,
            "port": 80,
            "protocol": "tcp",
            "endpoints": ENDPOINTS,
            **(service or {}),
        }
    ]
    data = {"services": services, "firewall": {"default": "drop", "rules": list(rules)}}
    picture = Picture(links=dict(LINKS))
    for address in (VIP, OWN):
        ip = ip_address(address)
        picture.addresses[1, ip] = Address(1, ip, 0, 0, 0)
    return question.question_of(FirewallQuestion(packet=packet, **said), picture, config_from_data(data))


def rule(name: str, **asks: Any) -> dict[str, Any]:
    return {"name": name, "action": "accept", **asks}


def test_packet_to_a_service_goes_through() -> None:
    """Though its address is the machine's."""
    found = asked(
        f"tcp 198.51.100.7:1 -> {VIP}:80", rule("local", direction="local"), rule("web", direction="through")
    )
    assert (found.rule, found.local, found.interface_out) == ("web", False, "lan")
    assert [(one.rule, one.why) for one in found.before] == [("local", "it is forwarded")]


@pytest.mark.parametrize(("protocol", "port"), [("udp", 80), ("tcp", 81)])
def test_packet_beside_a_service_is_for_the_machine(protocol: str, port: int) -> None:
    found = asked(f"{protocol} 198.51.100.7:1 -> {VIP}:{port}", rule("local", direction="local"))
    assert (found.rule, found.local) == ("local", True)


def test_rules_about_what_is_translated_see_the_endpoint() -> None:
    of_all = rule(
        "servers", protocol="tcp", destination="10.0.0.0/24", destination_ports=8080, after_translation=True
    )
    assert asked(f"tcp 198.51.100.7:1 -> {VIP}:80", of_all).rule == "servers"
    of_one = rule("server", destination="10.0.0.2", after_translation=True)
    with pytest.raises(FilterError, match="which service web chooses: say with --translated"):
        asked(f"tcp 198.51.100.7:1 -> {VIP}:80", of_one)
    packet = f"tcp 198.51.100.7:1 -> {VIP}:80"
    assert asked(packet, of_one, translated="tcp 198.51.100.7:1 -> 10.0.0.2:8080").rule == "server"


def test_source_of_full_nat_has_to_be_said() -> None:
    after = rule("servers", source="198.51.100.0/24", after_translation=True)
    with pytest.raises(FilterError, match="after translation by web: say with --translated"):
        asked(f"tcp 198.51.100.7:1 -> {VIP}:80", after, service={"mode": "full-nat"})
    assert asked(f"tcp 198.51.100.7:1 -> {VIP}:80", rule("any"), service={"mode": "full-nat"}).rule == "any"


def test_service_without_endpoints_is_said() -> None:
    drained = [{**endpoint, "drain": True} for endpoint in ENDPOINTS]
    with pytest.raises(FilterError, match="service web has no endpoint for new connections"):
        asked(f"tcp 198.51.100.7:1 -> {VIP}:80", rule("any"), service={"endpoints": drained})


@pytest.mark.parametrize(("direction", "found"), [("through", ""), ("local", "local"), (None, "local")])
def test_direction_that_is_said_counts(direction: str | None, found: str) -> None:
    """Also for an address of the machine."""
    decision = asked(f"tcp 198.51.100.7:1 -> {OWN}:22", rule("local", direction="local"), direction=direction)
    assert (decision.rule, decision.local) == (found, direction != "through")


@pytest.mark.parametrize("key", ["interface_in", "interface_out"])
def test_interface_that_is_not_there_is_an_error(key: str) -> None:
    said: dict[str, Any] = {key: "lna"}
    with pytest.raises(FilterError, match="there is no interface lna; use one of lan, wan"):
        asked(f"tcp 198.51.100.7:1 -> {OWN}:22", rule("any"), **said)
