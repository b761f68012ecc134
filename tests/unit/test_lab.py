# SPDX-License-Identifier: Apache-2.0
"""The parts of the lab that need no kernel: the plan of addresses, the nftables rules, the demo's report."""

from __future__ import annotations

import io
import json
from itertools import combinations

import pytest
from rich.console import Console

from clearway.lab.baseline import ruleset
from clearway.lab.commands import Summary
from clearway.lab.demo import quickstart
from clearway.lab.failover import Failover
from clearway.lab.measure import Http, Packets, parse_wrk
from clearway.lab.report import as_dict, print_json, print_tables
from clearway.lab.results import METRICS, SYSTEMS, Figures, Report
from clearway.lab.run import LabError
from clearway.lab.topology import Role, Topology, transit_net
from clearway.model import parse_config


def test_no_two_networks_of_a_lab_overlap() -> None:
    hosts = Topology(clients=4, servers=9).hosts()
    four = [host.ipv4.network for host in hosts] + [transit_net(index).ipv4[0].network for index in range(9)]
    six = [host.ipv6.network for host in hosts] + [transit_net(index).ipv6[0].network for index in range(9)]
    assert not any(one.overlaps(other) for one, other in combinations(four, 2))
    assert not any(one.overlaps(other) for one, other in combinations(six, 2))
    assert [host.name for host in hosts if host.role is Role.OUTSIDE] == ["outside"]


def test_path_of_a_host_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="server9"):
        Topology(path_mtus={"server9": (1500, 1300, 1500)}).hosts()


def test_quickstart_fits_the_lab() -> None:
    config = parse_config(quickstart(hook="xdp"))
    hosts = {host.name: host for host in Topology().hosts()}
    assert {interface.name for interface in config.interfaces} == {host.interface for host in hosts.values()}
    assert {interface.hook for interface in config.interfaces} == {"xdp"}
    servers = {
        host.address(family) for host in hosts.values() if host.role is Role.SERVER for family in (4, 6)
    }
    assert {str(endpoint.address) for service in config.services for endpoint in service.endpoints} == servers
    for host in hosts.values():
        covered = [nat for nat in config.nat if host.ipv4.ip in nat.source or host.ipv6.ip in nat.source]
        assert len(covered) == (2 if host.role is Role.CLIENT else 0)


def rules(services: list[dict[str, object]], nat: list[dict[str, object]] | None = None) -> list[str]:
    text = json.dumps({"interfaces": [{"name": "up"}], "services": services, "nat": nat or []})
    lines = ruleset(parse_config(text)).splitlines()
    return [line.strip() for line in lines if " map " in line or "masquerade" in line or "snat" in line]


def web(**more: object) -> dict[str, object]:
    endpoints = [{"address": f"10.0.0.{number}", "port": 8080} for number in (2, 3)]
    return {
        "name": "web",
        "address": "203.0.113.1",
        "port": 80,
        "protocol": "tcp",
        "endpoints": endpoints,
        **more,
    }


def test_baseline_hashes_for_maglev_and_takes_turns_for_round_robin() -> None:
    (hashed,) = rules([web(algorithm="maglev")])
    assert (
        "dnat to jhash ip saddr . tcp sport mod 2 map { 0 : 10.0.0.2 . 8080, 1 : 10.0.0.3 . 8080 }" in hashed
    )
    (turns,) = rules([web(algorithm="round-robin")])
    assert "dnat to numgen inc mod 2 map" in turns


def test_baseline_weighs_endpoints_and_leaves_out_idle_ones() -> None:
    (rule,) = rules(
        [
            web(
                endpoints=[
                    {"address": "10.0.0.2", "port": 80, "weight": 3},
                    {"address": "10.0.0.3", "port": 80, "weight": 0},
                    {"address": "10.0.0.4", "port": 80, "drain": True},
                    {"address": "10.0.0.5", "port": 80},
                ]
            )
        ]
    )
    assert "mod 4 map { 0-2 : 10.0.0.2 . 80, 3 : 10.0.0.5 . 80 }" in rule


def test_baseline_of_a_service_without_endpoints_is_no_rule() -> None:
    assert rules([web(endpoints=[{"address": "10.0.0.3", "port": 80, "weight": 0}])]) == []


def test_baseline_translates_the_source_as_configured() -> None:
    nat: list[dict[str, object]] = [
        {"name": "a", "source": "10.0.0.0/8", "interface": "up", "masquerade": True},
        {"name": "b", "source": "fd00::/8", "interface": "up", "pool": "2001:db8::8-2001:db8::b"},
    ]
    full, masquerade, pool = rules([web(mode="full-nat")], nat)[1:]
    assert full.startswith("meta l4proto tcp ct original ip daddr 203.0.113.1 ct original proto-dst 80")
    assert masquerade == 'oifname "up" ip saddr 10.0.0.0/8 masquerade'
    assert pool == 'oifname "up" ip6 saddr fd00::/8 snat to 2001:db8::8-2001:db8::b'


def test_wrk_report_is_read() -> None:
    errors = {"connect": 1, "read": 2, "write": 3, "status": 4, "timeout": 5}
    line = json.dumps({"requests": 500, "us": 2_000_000, "p50": 70, "p99": 900, **errors})
    found = parse_wrk(f"Running 2s test\n{line}\n")
    assert (found.per_second, found.broken, found.timeouts, found.p50_us, found.p99_us) == (
        250,
        10,
        5,
        70,
        900,
    )
    with pytest.raises(LabError, match="no result"):
        parse_wrk("unable to connect to 203.0.113.10:80 Connection refused\n")


def figures(factor: float) -> Figures:
    http = Http(int(1000 * factor), 1.0, 100 / factor, 200 / factor, 0, 0)
    flood = Packets(5000, int(4000 * factor), 1.0, 0.5)
    return Figures([http], [http], [http], [flood])


def report(**more: object) -> Report:
    load = Http(10, 1.0, 1, 2, 0, 3)
    found = Report("6.1", 2, 30, "tc")
    found.answers = {4: {"server1": 10, "server2": 10, "server3": 10}}
    found.outside_sees, found.outside_expected = {4: "198.51.100.1"}, {4: "198.51.100.1"}
    found.failover = Failover("server3", 7, {"server1": 8, "server2": 9}, {"server1": 0, "server2": 0}, load)
    found.answers_afterwards = {"server1": 15, "server2": 15}
    found.figures = {system: figures(factor) for system, factor in zip(SYSTEMS, (1, 2, 0.5), strict=True)}
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_ratio_above_one_is_better_whichever_way_the_metric_points() -> None:
    for metric in METRICS:
        assert report().ratio(metric, "linux") == 1
        assert report().ratio(metric, "tc") == pytest.approx(2)
        assert report().ratio(metric, "xdp") == pytest.approx(0.5)


def test_report_of_a_good_run_has_no_failures() -> None:
    assert report().failures() == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"answers": {4: {"server1": 30}}}, "not every request"),
        ({"answers": {6: {"server1": 10, "server2": 10, "server3": 9}}}, "not every request"),
        ({"outside_sees": {4: "10.1.1.2"}}, "10.1.1.2 instead of 198.51.100.1"),
        ({"answers_afterwards": {"server3": 1}}, "server3 got new connections"),
    ],
)
def test_report_says_what_failed(more: dict[str, object], says: str) -> None:
    (failure,) = report(**more).failures()
    assert says in failure


def test_broken_connections_are_failures() -> None:
    load = Http(10, 1.0, 1, 2, 9, 0)  # two more than the seven of server3
    failover = Failover("server3", 7, {"server1": 8, "server2": 9}, {"server1": 1, "server2": 0}, load)
    assert report(failover=failover).failures() == ["3 connections to the remaining servers broke"]


def test_report_is_a_table_for_people_and_an_object_for_programs() -> None:
    for printing in (print_tables, print_json):
        out = io.StringIO()
        printing(report(), Console(file=out, width=160))
        text = out.getvalue()
        if printing is print_json:
            assert json.loads(text) == json.loads(json.dumps(as_dict(report())))
            assert json.loads(text)["comparison"]["requests_per_second"]["tc"] == {
                "value": 2000,
                "times_linux": 2,
            }
        else:
            assert "2,000 (2.00x)" in text
            assert "500 (0.50x)" in text
            assert "server1 8, server2 9" in text


@pytest.mark.parametrize(("name", "line"), [("lab", "lab shell node"), ("b", "lab shell --name b node")])
def test_lab_that_is_up_says_the_shortest_way_in(name: str, line: str) -> None:
    text = Summary(name, "cw-lab-node", "203.0.113.10", "2001:db8::10", ()).text()
    assert text.splitlines()[-1] == f"try: clearway {line}"
