# SPDX-License-Identifier: Apache-2.0
"""The command line before a daemon that is none: output, errors, exit codes, completion."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, FileIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from clearway.api.views import FlowFilter, LinuxCounterViews, RuleView
from clearway.cli.common import ExitCode, Options
from clearway.cli.main import build_app, run
from clearway.cli.text import Column, count, duration, print_table, size
from clearway.daemon.lock import DataPathLock
from clearway.datapath.pins import Pins
from clearway.instance import Instance
from clearway.model import config_from_data
from tests.unit.api_node import CONFIG, REFUSED_BY_KERNEL, THE_REST, WEB_RULE, FakeControl, serving

TABS = 5  # in a shell, before somebody gives up
HEAVY = (
    "numpy",
    "pyroute2",
    "fastapi",
    "starlette",
    "uvicorn",
    "httpx",
    "pydantic",
    "ruamel",
    "structlog",
    "rich",
)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Clearway:
    """Runs command lines in this process, as the installed command would."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> Ran:
        self._capture.readouterr()
        code = run(arguments)
        captured = self._capture.readouterr()
        return Ran(code, captured.out, captured.err)


@pytest.fixture
def clearway(capsys: pytest.CaptureFixture[str]) -> Clearway:
    return Clearway(capsys)


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An instance without daemon and without traces, also where a real one is running."""
    monkeypatch.setenv("CLEARWAY_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("CLEARWAY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CLEARWAY_INSTANCE", f"cw-unit-{os.getpid()}")
    return tmp_path


@pytest.fixture
def control(directories: Path) -> Iterator[FakeControl]:
    fake = FakeControl()
    (directories / "run").mkdir()
    with serving(fake, directories / "run" / "api.sock"):
        yield fake


FLOW = {
    "family": 4,
    "protocol": "tcp",
    "state": "tcp_established",
    "client": "198.51.100.1",
    "client_port": 40000,
    "destination": "203.0.113.10",
    "destination_port": 80,
    "source_out": "198.51.100.1",
    "source_out_port": 40000,
    "destination_out": "10.0.0.2",
    "destination_out_port": 8080,
    "service": "web",
    "endpoint": "10.0.0.2:8080",
    "nat": None,
    "packets": 3,
    "bytes": 1000,
    "reply_packets": 4,
    "reply_bytes": 1048576,
    "age": 12.5,
    "idle": 0.5,
}


# ---- following ----

ENDED = {
    "ended": 1_800_000_000.0,
    "began": 1_799_999_940.0,
    "why": "expired",
    "state": "tcp_time_wait",
    "protocol": "tcp",
    "client": "192.0.2.1",
    "client_port": 4000,
    "destination": "203.0.113.10",
    "destination_port": 80,
    "source_out": "192.0.2.1",
    "source_out_port": 4000,
    "destination_out": "10.0.0.2",
    "destination_out_port": 8080,
    "packets": 1234,
    "bytes": 1000,
    "reply_packets": 4,
    "reply_bytes": 1048576,
}


def test_follow_shows_each_connection_on_a_line(clearway: Clearway, control: FakeControl) -> None:
    untranslated = {**ENDED, "destination_out": "203.0.113.10", "destination_out_port": 80}
    control.ended_pieces = [f"{json.dumps(ENDED)}\n".encode(), b"\n", json.dumps(untranslated).encode()]
    ran = clearway("follow")
    assert ran.code == ExitCode.UNREACHABLE
    assert ran.err == "clearway: the daemon has stopped; follow again when it runs\n"
    first, second = ran.out.splitlines()
    carried = "1,234/4 packets, 1000 B/1.0 MiB, 1 min, time wait, expired"
    assert first[9:] == f"tcp 192.0.2.1:4000 -> 203.0.113.10:80 as 192.0.2.1:4000 -> 10.0.0.2:8080  {carried}"
    assert second[9:] == f"tcp 192.0.2.1:4000 -> 203.0.113.10:80  {carried}"


def test_follow_as_json_passes_lines_on(clearway: Clearway, control: FakeControl) -> None:
    control.ended_pieces = [b'{"a": 1}\n\n', b'{"b":', b" 2}\n"]
    assert clearway("follow", "-o", "json").out == '{"a": 1}\n{"b": 2}\n'


# ---- firewall ----

EVENT = {
    "at": 1_800_000_000.5,
    "action": "drop",
    "rule": "no-telnet",
    "known": False,
    "interface_in": "eth0",
    "interface_out": None,
    "vlan": 0,
    "family": 4,
    "protocol": "tcp",
    "source": "192.0.2.1",
    "source_port": 4000,
    "destination": "203.0.113.1",
    "destination_port": 23,
    "tcp_flags": "syn",
    "icmp_type": None,
    "length": 74,
    "head": "4500",
}


def test_firewall_log_shows_each_decision_on_a_line(clearway: Clearway, control: FakeControl) -> None:
    other = {
        **EVENT,
        "rule": None,
        "known": True,
        "protocol": "gre",
        "tcp_flags": "",
        "interface_out": "eth1",
    }
    ping = {**EVENT, "protocol": "icmp", "tcp_flags": "", "icmp_type": "echo-request"}
    events = [EVENT, other, ping]
    control.ended_pieces = ["".join(f"{json.dumps(event)}\n" for event in events).encode()]
    ran = clearway("firewall", "log")
    assert ran.code == ExitCode.UNREACHABLE  # the daemon has ended
    first, second, third = ran.out.splitlines()
    assert first[9:] == ("drop no-telnet: tcp 192.0.2.1:4000 -> 203.0.113.1:23 syn  in eth0, out -, 74 bytes")
    assert second[9:] == (
        "drop (default): gre 192.0.2.1 -> 203.0.113.1  in eth0, out eth1, 74 bytes,"
        " of a connection that was accepted before"
    )
    assert third[9:] == (
        "drop no-telnet: icmp 192.0.2.1 -> 203.0.113.1 echo-request  in eth0, out -, 74 bytes"
    )


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], ["there is no firewall; waiting for one"]),
        ([THE_REST], ["no rule has log: true; waiting for one"]),
        ([WEB_RULE, THE_REST], []),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_firewall_log_says_why_it_may_stay_silent(
    clearway: Clearway, control: FakeControl, rules: list[RuleView], said: list[str], output: str
) -> None:
    control.rule_views = rules
    control.ended_pieces = [f"{json.dumps(EVENT)}\n".encode()]
    ran = clearway("firewall", "log", "-o", output)
    assert ran.err.splitlines()[:-1] == [f"clearway: {line}" for line in said]
    assert "the daemon has stopped" in ran.err.splitlines()[-1]
    assert len(ran.out.splitlines()) == 1  # it has waited


def test_firewall_test_says_who_decides_and_why_not_others(clearway: Clearway, control: FakeControl) -> None:
    ran = clearway("firewall", "test", "tcp 192.0.2.1:1 -> 10.0.0.2:80", "--out", "eth7")
    assert ran.err == ""
    assert ran.out.splitlines() == [
        "accept: by rule web",
        "  which asks for: protocol tcp",
        "  the packet is to leave by eth7",
        "  not by ssh: destination port 80 is not meant",
    ]
    assert clearway("firewall", "test", "tcp").err == "clearway: 'tcp' is no packet\n"


def test_rules_that_have_decided_nothing_can_be_left_out(clearway: Clearway, control: FakeControl) -> None:
    found = json.loads(clearway("get", "rules", "--hit", "-o", "json").out)
    assert [rule["name"] for rule in found["rules"]] == ["web"]


def test_rules_of_linux_count_with_what_was_carried_around_them(
    clearway: Clearway, control: FakeControl
) -> None:
    table = clearway("get", "rules").out
    assert table.splitlines()[-1].split() == [
        *("inet", "filter", "forward", "7", "ct", "state", "established", "counter", "accept"),
        *("1,200", "3.0", "MiB", "1,190"),
    ]
    [counted] = json.loads(clearway("get", "rules", "-o", "json").out)["linux"]
    assert (counted["packets"], counted["carried_packets"], counted["carried_bytes"]) == (1200, 1190, 2 << 20)
    control.rule_views = []
    alone = clearway("get", "rules").out
    assert "there is no firewall" not in alone
    assert "ct state established" in alone


def test_rules_of_linux_that_cannot_be_read_do_not_hide_the_others(
    clearway: Clearway, control: FakeControl
) -> None:
    control.linux_views = LinuxCounterViews(linux=[], why="nft is missing (Debian: nftables)")
    ran = clearway("get", "rules")
    assert "web" in ran.out
    assert ran.err == "clearway: Linux' rules: nft is missing (Debian: nftables)\n"


def test_set_is_exchanged(clearway: Clearway, control: FakeControl, tmp_path: Path) -> None:
    rule = {"name": "in", "action": "accept", "source": "@office"}
    data = {"firewall": {"sets": {"office": ["10.0.0.0/8"]}, "rules": [rule]}}
    control.running = config_from_data(data)
    members = tmp_path / "office.txt"
    members.write_text("198.51.100.0/24 # the old building\n\n2001:db8:1::/48\n")
    assert clearway("firewall", "set", "office", str(members)).out.splitlines()[:2] == [
        "~ set office",
        "    ~ members: +198.51.100.0/24 +2001:db8:1::/48 -10.0.0.0/8",
    ]
    assert control.running.model_dump(mode="json")["firewall"]["sets"] == {
        "office": ["198.51.100.0/24", "2001:db8:1::/48"]
    }
    members.write_text("80\n")
    assert "set office is one of ports" in clearway("firewall", "set", "office", str(members)).err
    members.write_text("10.0.0.0/8\n")
    assert "there is no set home" in clearway("firewall", "set", "home", str(members)).err


def test_set_is_refused_in_the_words_of_its_file(
    clearway: Clearway, control: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.running = config_from_data({"firewall": {"sets": {"office": ["10.0.0.0/8"], "web": [80]}}})
    before = control.running
    file = tmp_path / "members.txt"
    file.write_text("10.0.0.0/8\n10.0.0.300\n\nhome\n")
    ran = clearway("firewall", "set", "office", str(file))
    assert ran.code == ExitCode.REFUSED
    assert [line.partition(" is ")[0] for line in ran.err.splitlines()] == [
        f'clearway: {file} (line 2): "10.0.0.300"',
        f'clearway: {file} (line 4): "home"',
    ]
    file.write_text("80\nhttp\n")
    assert f'{file} (line 2): "http" is not a port' in clearway("firewall", "set", "web", str(file)).err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    ran = clearway("firewall", "set", "office", "-", "-o", "json")
    assert ran.code == ExitCode.REFUSED
    assert ran.err.startswith("clearway: standard input: has no members; to empty the set, ")
    assert json.loads(ran.out)["errors"][0]["what"] == "has no members"
    assert control.running is before


def test_set_is_emptied_by_the_configuration(
    clearway: Clearway, control: FakeControl, tmp_path: Path
) -> None:
    rule = {"name": "in", "action": "accept", "source": "@office"}
    data: dict[str, Any] = {"firewall": {"sets": {"office": ["10.0.0.0/8"]}, "rules": [rule]}}
    control.running = config_from_data(data)
    data["firewall"]["sets"]["office"] = []
    file = tmp_path / "new.yaml"
    file.write_text(json.dumps(data))
    assert clearway("apply", str(file)).code == ExitCode.OK
    assert control.running.firewall is not None
    assert not control.running.firewall.sets["office"]


# ---- reading ----


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["status"], ["instance test", "2 h 3 min", "changed through the API", "1,234,567 connections"]),
        (["status"], ["refused", "no: fix it", "waiting", "interface eth9 is not there"]),
        (
            ["status"],
            [
                "1 service, 2 endpoints, 1 NAT rule, 2 firewall rules\n",
                "12 expired\n",
                "; 2 of them keep connections in Linux (",
                "traffic is shown to eth0: tcpdump (4712), by TC instead of XDP\n",
                "!                  nat out: a warning",
            ],
        ),
        (["get", "services"], ["web", "203.0.113.10:80/tcp", "1 of 2", "12,345", "5.0 GiB"]),
        (["get", "endpoints"], ["10.0.0.2:8080", "10.0.0.3:8080", "50.0%", "active"]),
        (["get", "endpoints", "--service", "web"], ["10.0.0.2:8080"]),
        (["get", "nat"], ["out", "10.0.0.0/8", "masquerade", "1024-32767"]),
        (
            ["get", "rules"],
            ["web", "accept, log", "protocol tcp", "7", "420 B", "(default)", "the rest", "never"],
        ),
        (["get", "interfaces"], ["eth0", "attached", "xdp", "ice", "driver ice has native XDP"]),
        (["get", "flows"], ["no flow matches"]),
    ],
)
def test_tables_for_people(
    clearway: Clearway, control: FakeControl, command: list[str], expected: list[str]
) -> None:
    ran = clearway(*command)
    assert ran.code == ExitCode.OK
    assert all(text in ran.out for text in expected), ran.out
    assert not any(line.endswith(" ") for line in ran.out.splitlines())


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["status"], "pid"),
        (["get", "services"], "services"),
        (["get", "endpoints"], "endpoints"),
        (["get", "flows"], "flows"),
        (["get", "nat"], "nat"),
        (["get", "interfaces"], "interfaces"),
        (["get", "reasons"], "reasons"),
    ],
)
def test_json_for_programs(clearway: Clearway, control: FakeControl, command: list[str], key: str) -> None:
    ran = clearway(*command, "-o", "json")
    assert (ran.code, ran.err) == (0, "")
    assert key in ran.json()


def test_reasons_are_grouped_and_summed_against_what_came_in(
    clearway: Clearway, control: FakeControl
) -> None:
    lines = [line.split() for line in clearway("get", "reasons").out.splitlines()]
    assert lines[1:] == [
        ["forward", "flow", "900", "56.2", "KiB", "90.0%"],
        ["forward", "new", "60", "3.8", "KiB", "6.0%"],
        ["forward", "(all)", "960", "60.0", "KiB", "96.0%"],
        ["punt", "icmp", "40", "2.5", "KiB", "4.0%"],
        ["all", "accounted", "for", "1,000", "62.5", "KiB", "100.0%"],
        ["-", "received", "1,000", "62.5", "KiB", "100.0%"],
    ]


def test_flows_show_both_directions_and_how_many_are_left_out(
    clearway: Clearway, control: FakeControl
) -> None:
    control.flow_pieces = [json.dumps({"matched": 1234, "total": 9999, "flows": [FLOW]}).encode()]
    out = clearway("get", "flows", "--limit", "1").out
    assert "198.51.100.1:40000  203.0.113.10:80" in out
    assert "1.0 MiB" in out
    assert out.splitlines()[-1] == "1 of 1,234 flows; --limit shows more"


def test_flow_filters_reach_the_daemon(clearway: Clearway, control: FakeControl) -> None:
    options = {
        "--service": "web",
        "--endpoint": "10.0.0.2",
        "--nat": "out",
        "--address": "10.0.0.0/8",
        "--protocol": "tcp",
        "--state": "established",
    }
    arguments = [word for option in options.items() for word in option]
    clearway("get", "flows", *arguments, "--limit", "5")
    clearway("get", "flows")
    clearway("get", "flows", "-o", "json")
    words = {name.removeprefix("--"): value for name, value in options.items()}
    expected = [FlowFilter(**words, limit=5), FlowFilter(limit=50), FlowFilter()]
    assert control.flows_asked == expected


# ---- changing ----


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new.yaml"
    path.write_text("services: []\n")
    return path


def test_plan_shows_and_apply_does(clearway: Clearway, control: FakeControl, file: Path) -> None:
    planned = clearway("plan", str(file))
    assert "- service web" in planned.out
    assert "full; 65,536 flows a family: lower conntrack.max_flows for less\n" in planned.out
    assert control.running == CONFIG
    assert clearway("plan", str(file), "-o", "json").json()["summary"] == "0 to add, 0 to change, 3 to remove"
    assert clearway("apply", str(file)).out.endswith("applied: 0 added, 0 changed, 3 removed\n")
    assert control.running.services == ()


def test_warnings_come_with_what_is_planned_and_applied(
    clearway: Clearway, control: FakeControl, file: Path
) -> None:
    rule = {"name": "out", "source": "10.0.0.0/8", "interface": "eth0", "masquerade": True}
    file.write_text(json.dumps({"nat": [rule]}))
    for command in ("plan", "apply"):
        assert clearway(command, str(file)).out.endswith("\n! nat out: a warning\n")
        assert clearway(command, str(file), "-o", "json").json()["warnings"] == ["nat out: a warning"]


@pytest.mark.usefixtures("control")
def test_rules_that_are_never_reached_come_with_what_is_planned_and_applied(
    clearway: Clearway, file: Path
) -> None:
    rules = [{"name": "a", "action": "accept"}, {"name": "b", "action": "drop"}]
    file.write_text(json.dumps({"firewall": {"rules": rules}}))
    warning = "firewall: rule b is never reached: rule a before it decides about all that it asks for"
    for command in ("plan", "apply"):
        assert clearway(command, str(file)).out.endswith(f"\n! {warning}\n")
        assert clearway(command, str(file), "-o", "json").json()["warnings"] == [warning]


@pytest.mark.parametrize(
    ("hook", "hooks"), [([], {"eth0": "tc", "lo": "auto"}), (["--hook", "xdp"], {"eth0": "xdp", "lo": "xdp"})]
)
def test_interface_that_is_taken_keeps_its_hook_unless_one_is_named(
    clearway: Clearway, control: FakeControl, hook: list[str], hooks: dict[str, str]
) -> None:
    assert clearway("up", "eth0", "lo", *hook).code == 0
    assert {one.name: one.hook for one in control.running.interfaces} == hooks


def test_up_tells_of_interfaces_and_not_of_a_configuration(clearway: Clearway, control: FakeControl) -> None:
    ran = clearway("up", "eth0", "a b")
    assert ran.code == ExitCode.REFUSED
    assert ran.err.startswith("clearway: ")
    assert "interfaces[" not in ran.err
    assert "a b" in ran.err


def test_single_things_come_drain_and_go(clearway: Clearway, control: FakeControl) -> None:
    add = ("service", "add", "dns", "--address", "2001:db8::1", "--port", "53", "--protocol", "udp")
    ran = clearway(*add, "--endpoint", "[2001:db8::2]:53,weight=3", "--endpoint", "[2001:db8::3]:53")
    assert ran.code == 0, ran.err
    assert [(str(e.address), e.weight) for e in control.running.services[1].endpoints] == [
        ("2001:db8::2", 3),
        ("2001:db8::3", 1),
    ]
    assert clearway("endpoint", "add", "dns", "[2001:db8::4]:53", "--weight", "2").code == 0
    assert clearway("endpoint", "drain", "dns", "2001:db8::4").code == 0
    assert control.running.services[1].endpoints[2].drain
    assert clearway("endpoint", "drain", "dns", "2001:db8::4", "--undo").code == 0
    assert not control.running.services[1].endpoints[2].drain
    assert clearway("endpoint", "remove", "dns", "[2001:db8::4]:53").code == 0
    assert clearway("service", "remove", "dns", "-o", "json").json()["empty"] is False
    assert control.running == CONFIG


@pytest.mark.parametrize(
    ("arguments", "weight"),
    [
        (["10.0.0.9:80"], 1),
        (["10.0.0.9:80,weight=5"], 5),
        (["10.0.0.9:80", "--weight", "5"], 5),
        (["10.0.0.9:80,weight=5", "--weight", "5"], 5),
    ],
)
def test_added_endpoint_has_the_weight_that_was_said(
    clearway: Clearway, control: FakeControl, arguments: list[str], weight: int
) -> None:
    ran = clearway("endpoint", "add", "web", *arguments)
    assert ran.code == 0, ran.err
    assert control.running.services[0].endpoints[-1].weight == weight


def test_drain_waits_for_the_last_connection(clearway: Clearway, control: FakeControl) -> None:
    ran = clearway("endpoint", "drain", "web", "10.0.0.2:8080", "--wait", "5")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "10.0.0.2:8080 has no connection left")
    control.draining_flows = 7
    ran = clearway("endpoint", "drain", "web", "10.0.0.2:8080", "--wait", "0")
    assert ran.code == ExitCode.REFUSED
    assert "still has 7 connections after 0 s" in ran.err


def test_down_asks_the_daemon(clearway: Clearway, control: FakeControl) -> None:
    assert clearway("down", "-o", "json").json() == {"removed": True}
    assert control.removed


# ---- refusing ----


def test_explanation_says_which_direction_is_carried(clearway: Clearway, control: FakeControl) -> None:
    headline, *directions = clearway("explain", "flow", "10.0.0.2:1", "192.0.2.2:2", "tcp").out.splitlines()
    only = "only its reply direction is carried by the fast path, its original is not"
    assert headline == f"{only}: may match a rule with a limit"
    assert directions == [
        "  original: 10.0.0.2:1 -> 192.0.2.2:2, from eth0 to eth1",
        "    kept in Linux: may match a rule with a limit",
        "    by inet filter forward handle 9: limit rate 10/second accept",
        "  reply: 10.0.0.2:1 -> 192.0.2.2:2, from eth0",
    ]


def test_rules_of_linux_say_how_much_they_keep(clearway: Clearway, control: FakeControl) -> None:
    _titles, nothing, some, everything, *more = clearway("explain", "rules").out.splitlines()
    assert [line.split()[-2] for line in (nothing, some, everything)] == ["-", "some", "all"]
    assert more[-1] == "3 rules of generation 7; 2 keep connections in Linux"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], ExitCode.USAGE, "No such command 'nothing'. (`clearway --help` explains it)"),
        (["get", "nothing"], ExitCode.USAGE, "(`clearway get --help` explains it)"),
        (["service", "add"], ExitCode.USAGE, "(`clearway service add --help` explains it)"),
        (["status", "--instance", "a"], ExitCode.USAGE, "`clearway --instance NAME COMMAND`"),
        (["get", "flows", "--protocol", "sctp"], ExitCode.USAGE, "icmpv6"),
        (["get", "flows", "--limit", "x"], ExitCode.USAGE, "--limit"),
        (["status", "-o", "xml"], ExitCode.USAGE, "xml"),
        (["--instance", "a/b", "status"], ExitCode.USAGE, "'a/b' cannot name an instance"),
        (
            ["endpoint", "add", "web", "10.0.0.9"],
            ExitCode.USAGE,
            "'10.0.0.9' is no endpoint; write ADDRESS:PORT",
        ),
        (
            ["endpoint", "add", "web", "10.0.0.9:80,weight=5", "--weight", "1"],
            ExitCode.USAGE,
            "'10.0.0.9:80,weight=5' and --weight 1 differ; give one of them",
        ),
        (["endpoint", "add", "web", "10.0.0.9:8²"], ExitCode.USAGE, "'10.0.0.9:8²' is no endpoint"),
        (["endpoint", "add", "web", "10.0.0.9:80,weight=²"], ExitCode.USAGE, "is no endpoint"),
        (["endpoint", "add", "web", "10.0.0.9:" + "9" * 5000], ExitCode.USAGE, "is no endpoint"),
        (["service", "remove", ""], ExitCode.USAGE, "'SERVICE': nothing is given"),
        (["endpoint", "remove", "web", ""], ExitCode.USAGE, "'ENDPOINT': nothing is given"),
        (["endpoint", "remove", "", "10.0.0.2:8080"], ExitCode.USAGE, "'SERVICE': nothing is given"),
        (["endpoint", "drain", "web", ""], ExitCode.USAGE, "'ENDPOINT': nothing is given"),
        (["endpoint", "drain", "web", "10.0.0.2", "--wait", "nan"], ExitCode.USAGE, "'--wait': nan seconds"),
        (["endpoint", "drain", "web", "10.0.0.2", "--wait", "inf"], ExitCode.USAGE, "'--wait': inf seconds"),
        (["endpoint", "drain", "web", "10.0.0.2", "--wait", "-1"], ExitCode.USAGE, "--wait"),
        (["plan", ""], ExitCode.USAGE, "'FILE': nothing is given"),
        (["get", "flows", "--address", ""], ExitCode.USAGE, "'--address': nothing is given"),
        (["get", "endpoints", "--service", ""], ExitCode.USAGE, "'--service': nothing is given"),
        (["endpoint", "remove", "web", "9.9.9.9"], ExitCode.REFUSED, "service web has no endpoint 9.9.9.9;"),
        (["service", "remove", "wbe"], ExitCode.REFUSED, "there is no service wbe; services: web"),
        (
            ["get", "endpoints", "--service", "wbe"],
            ExitCode.REFUSED,
            "there is no service wbe; services: web",
        ),
        (["apply", "/nonexistent.yaml"], ExitCode.REFUSED, "/nonexistent.yaml: No such file or directory"),
    ],
)
def test_error_is_one_line_and_a_code(
    clearway: Clearway, control: FakeControl, arguments: list[str], code: int, message: str
) -> None:
    ran = clearway(*arguments)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("clearway: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frob -o json", "No such command 'frob'."),
        ("-o json status", "it stands after the command"),
        ("get flows --limit -1 -o json", "--limit"),
        ("get flows --limit -1 --output=json", "--limit"),
        ("get flows -ojson --limit -1", "--limit"),
        ("get --output json", "--output"),
        ("--instance a/b run -o json", "'a/b' cannot name an instance"),
    ],
)
def test_wrong_command_line_is_json_where_json_is_asked_for(
    clearway: Clearway, control: FakeControl, line: str, message: str
) -> None:
    ran = clearway(*line.split())
    assert ran.code == ExitCode.USAGE
    [error] = ran.json()["errors"]
    assert message in error["message"]
    assert ran.err == f"clearway: {error['message']}\n"


def test_every_problem_of_a_file_gets_its_line(clearway: Clearway, control: FakeControl, file: Path) -> None:
    file.write_text("services:\n  - {name: web, prot: tcp}\n")
    ran = clearway("apply", str(file))
    assert ran.code == ExitCode.REFUSED
    lines = ran.err.splitlines()
    assert len(lines) > 1
    assert all(line.startswith(f"clearway: {file}: services[0].") and "(line 2)" in line for line in lines)


def test_refusal_is_json_where_json_is_asked_for(
    clearway: Clearway, control: FakeControl, file: Path
) -> None:
    file.write_text("services:\n  - {name: web, prot: tcp}\n")
    ran = clearway("apply", str(file), "-o", "json")
    assert ran.code == ExitCode.REFUSED
    assert ("services[0].prot", 2) in [(error["path"], error["line"]) for error in ran.json()["errors"]]


def test_what_the_kernel_refuses_is_shown(clearway: Clearway, control: FakeControl) -> None:
    control.broken = REFUSED_BY_KERNEL
    ran = clearway("status")
    assert (ran.code, ran.err) == (ExitCode.REFUSED, f"clearway: {REFUSED_BY_KERNEL}\n")


@pytest.mark.parametrize("command", ["status", "get services", "get flows", "service remove web", "apply -"])
def test_no_daemon_is_a_code_of_its_own(
    clearway: Clearway, directories: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO()))
    ran = clearway(*command.split(), "-o", "json")
    assert ran.code == ExitCode.UNREACHABLE
    assert "start it with `clearway up INTERFACE...` or `clearway run`" in ran.err
    assert "start it with `clearway up INTERFACE...` or `clearway run`" in ran.json()["errors"][0]["message"]


@pytest.mark.parametrize("command", ["apply", "plan", "firewall import"])
def test_input_that_cannot_be_read_is_an_error(
    clearway: Clearway, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "written").open("w") as only_written:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=FileIO(only_written.fileno(), closefd=False)))
        ran = clearway(*command.split(), "-")
    assert (ran.code, ran.out) == (ExitCode.REFUSED, "")
    assert ran.err == "clearway: -: Bad file descriptor; give a file that can be read\n"


def test_bug_is_one_line_unless_debugged(
    clearway: Clearway, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clearway.cli.get._status_facts", lambda _found: 1 / 0)
    ran = clearway("status")
    assert ran.code == ExitCode.BUG
    assert (
        ran.err == "clearway: a bug in clearway: ZeroDivisionError: division by zero; --debug shows where\n"
    )
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "status"])


# ---- without daemon ----

ALONE = "services:\n  - {name: web, address: 203.0.113.10, port: 80, protocol: tcp}\n"


def test_plan_without_daemon_compares_with_nothing(clearway: Clearway, directories: Path, file: Path) -> None:
    file.write_text(ALONE)
    ran = clearway("plan", str(file))
    assert ran.code == 0, ran.err
    assert "+ service web" in ran.out
    assert ran.err == "clearway: no daemon is running; compared with what is in the kernel\n"


def test_plan_compares_with_nothing_after_a_kill_in_the_middle_of_a_start(
    clearway: Clearway, directories: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Pins("x", directories / "pins")
    half.make()
    (half.progs / "1").mkdir()
    monkeypatch.setattr(Pins, "of", lambda _instance: half)
    file.write_text(ALONE)
    ran = clearway("plan", str(file))
    assert ran.code == 0, ran.err
    assert "+ service web" in ran.out


def test_plan_without_daemon_refuses_the_same_way(clearway: Clearway, directories: Path, file: Path) -> None:
    file.write_text("interfaces: [{name: nowhere0}]\n")
    ran = clearway("plan", str(file))
    assert ran.code == ExitCode.REFUSED
    assert ran.err.startswith(
        f"clearway: {file}: interfaces[0].name (line 1): there is no interface nowhere0"
    )


def test_down_without_anything_is_fine(clearway: Clearway, directories: Path) -> None:
    ran = clearway("down")
    assert ran.code == 0
    assert "nothing to remove" in ran.out


def test_down_leaves_logs_of_what_up_has_written(clearway: Clearway, directories: Path) -> None:
    (directories / "state").mkdir()
    for name in ("up.yaml", "daemon.log", "daemon.log.1"):
        (directories / "state" / name).touch()
    assert clearway("down").code == 0
    assert {one.name for one in (directories / "state").iterdir()} == {"daemon.log", "daemon.log.1"}


def test_down_does_not_pull_the_rug_from_under_a_daemon(
    clearway: Clearway, directories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clearway.cli.node.STARTING_SECONDS", 0.1)
    hanging = Instance(
        os.environ["CLEARWAY_INSTANCE"], directories / "run", directories / "s", directories / "p"
    )
    with DataPathLock(hanging):
        ran = clearway("down")
        status = clearway("status")
    assert ran.code == ExitCode.LOCKED
    assert f"the daemon is starting (pid {os.getpid()} holds" in ran.err
    assert "has not answered within 0.1 s" in ran.err
    assert status.code == ExitCode.UNREACHABLE
    assert f"the daemon is starting (pid {os.getpid()} holds" in status.err
    assert "no daemon is running" in clearway("status").err


# ---- the whole command line ----


@pytest.mark.parametrize("arguments", [[], ["get"], ["service"], ["endpoint"], ["lab"]])
def test_group_alone_shows_its_help(clearway: Clearway, arguments: list[str]) -> None:
    ran = clearway(*arguments)
    assert ran.code == ExitCode.USAGE
    assert "Commands:" in ran.out


@pytest.mark.parametrize("words", [[], ["get"], ["service"], ["endpoint"], ["lab"]])
def test_help_says_each_command_in_a_whole_sentence(
    clearway: Clearway, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = clearway(*words, "--help").out
    _before, heading, commands = out.partition("Commands:\n")
    assert heading
    assert all(line.endswith(".") and not line.endswith("...") for line in commands.splitlines())
    assert not words or f"Example:\n    clearway {words[0]} " in out


def test_version_is_told(clearway: Clearway) -> None:
    ran = clearway("--version")
    assert ran.code == 0
    assert ran.out.startswith("clearway ")


def test_help_comes_from_the_runner_as_well() -> None:
    result = CliRunner().invoke(build_app(), ["get", "flows", "--help"], obj=Options())
    assert result.exit_code == 0
    assert "clearway get flows --service web" in result.output


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", ["--version", "--help", "status", "get flows --help"])
def test_start_imports_nothing_heavy(command: str, directories: Path) -> None:
    code = (
        "import sys; from clearway.cli.main import run; run(sys.argv[1:]);"
        "sys.stderr.write('\\n' + ' '.join(sys.modules))"
    )
    loaded = python("-c", code, *command.split()).stderr.splitlines()[-1].split()
    assert "clearway.cli.main" in loaded
    assert not set(HEAVY) & set(loaded)


def test_module_is_the_command(directories: Path) -> None:
    done = python("-m", "clearway", "status")
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.startswith("clearway: no daemon is running")
    assert "Traceback" not in done.stderr


def test_reader_that_goes_away_is_no_error(control: FakeControl, directories: Path) -> None:
    control.flow_pieces = [b"x" * 65536] * 100
    command = f"{sys.executable} -m clearway get flows -o json | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "x" * 10, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clearway service remove w", ["web"]),
        ("clearway get endpoints --service ", ["web"]),
        ("clearway get flows --nat ", ["out"]),
        ("clearway endpoint drain web 10.0.0.3", ["10.0.0.3:8080"]),
        ("clearway get f", ["flows"]),
        ("clearway status -o j", ["json"]),
    ],
)
def test_shell_completes(control: FakeControl, line: str, expected: list[str]) -> None:
    """After another tab where the daemon's answer took longer than somebody waits."""
    for _ in range(TABS):
        if offered := completed(line):
            break
    assert offered == expected


def test_completion_without_daemon_offers_nothing(directories: Path) -> None:
    assert completed("clearway service remove w") == []


def completed(line: str) -> list[str]:
    words = line.split(" ")
    done = python(
        *("-c", "from clearway.cli.main import main; main()"),
        _CLEARWAY_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


# ---- words and numbers ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(1234567), "1,234,567"),
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(1536), "1.5 KiB"),
        (size(5 << 50), "5.0 PiB"),
        (size(5000 << 50), "5000.0 PiB"),
        (duration(0.25), "0.2 s"),
        (duration(75), "1 min 15 s"),
        (duration(7200), "2 h"),
        (duration(90061), "1 d 1 h"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_wide_table_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("a", "a"), Column("b", "b", True)], [{"a": "x" * 300, "b": 1.25}], "none")
    assert capsys.readouterr().out.splitlines()[1] == "x" * 300 + "  1.2"
