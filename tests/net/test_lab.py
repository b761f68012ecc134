# SPDX-License-Identifier: Apache-2.0
"""The lab itself: it is what it says, several live side by side, nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from clearway.lab import Lab, LabError, Topology, commands, measure, reap, wait_until
from clearway.lab.baseline import linux_alone
from clearway.lab.demo import quickstart
from clearway.lab.namespace import existing
from clearway.model import parse_config


def traces(lab: Lab) -> list[str]:
    """What a lab that is down must not have left."""
    left = [namespace.name for namespace in existing(lab.prefix)]
    if lab.directory.exists():
        left.append(str(lab.directory))
    return left


@pytest.fixture
def name(lab_names: Iterator[str]) -> str:
    return next(lab_names)


@pytest.fixture(scope="module")
def plain_lab(lab_names: Iterator[str]) -> Iterator[Lab]:
    with Lab(next(lab_names), Topology(path_mtus={"client2": (1500, 1300, 1500)})) as built:
        yield built


def test_everybody_reaches_everybody_who_should(plain_lab: Lab, family: int) -> None:
    for host in plain_lab.hosts.values():
        assert host.ns.run("ping", "-c1", "-W2", plain_lab.vip(family)).returncode == 0
    for server in plain_lab.servers:
        url = f"http://{server.address(4)}:8080/" if family == 4 else f"http://[{server.address(6)}]:8080/"
        answer = plain_lab.client.ns.run("curl", "-sg", "--max-time", "5", url).stdout.split()
        assert answer[:2] == [server.name, plain_lab.client.address(family)]


def test_outside_does_not_know_the_inner_network(plain_lab: Lab, family: int) -> None:
    ping = plain_lab.client.ns.run("ping", "-c1", "-W1", plain_lab.outside.address(family), check=False)
    assert ping.returncode != 0


def test_narrow_link_is_where_neither_end_sees_it(plain_lab: Lab) -> None:
    path = plain_lab["client2"].ns.run("tracepath", "-n", plain_lab.servers[0].address(4)).stdout
    assert "pmtu 1300" in path.splitlines()[-1]


def test_servers_log_who_asked(plain_lab: Lab) -> None:
    server = plain_lab["server2"]
    plain_lab.client.ns.run("curl", "-sg", "--max-time", "5", f"http://{server.address(4)}:8080/logged")
    assert server.nginx is not None
    logged = [request for request in server.nginx.requests() if request.path == "/logged"]
    assert [(request.client, request.status) for request in logged] == [(plain_lab.client.address(4), 200)]


def test_linux_alone_balances_and_masquerades(plain_lab: Lab, family: int) -> None:
    lab, config = plain_lab, parse_config(quickstart())
    with linux_alone(lab.node, config):
        answers = measure.distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 60)
        seen = measure.seen_from_outside(lab.client.ns, lab.outside, family)
    assert set(answers) == {"server1", "server2", "server3"}
    assert answers.total() == 60
    assert seen == lab.outside.plan.gateway(family)
    assert "table" not in lab.node.run("nft", "list", "ruleset").stdout


def test_measures_count_what_arrives(plain_lab: Lab) -> None:
    with linux_alone(plain_lab.node, parse_config(quickstart())):
        node = plain_lab.node_address("uplink", 4)
        flood = measure.packets(plain_lab.client, plain_lab.outside, node, seconds=0.3)
        url = f"http://{plain_lab.vip(4)}/load"
        load = measure.http(
            plain_lab.client.ns, plain_lab.directory, url, seconds=1, connections=4, close=True
        )
    assert 0.9 * flood.sent <= flood.arrived <= flood.sent
    assert flood.cpu_ns_per_packet > 0
    assert (load.broken, load.timeouts) == (0, 0)
    assert 0 < load.p50_us <= load.p99_us


def test_goes_away_with_the_block(name: str) -> None:
    with Lab(name) as lab:
        lab.client.ns.spawn("sleep", "1000", output=lab.directory / "sleep.log")
        assert len(existing(lab.prefix)) == 7
    assert traces(lab) == []


def test_goes_away_when_it_cannot_come_up(name: str) -> None:
    lab = Lab(name, Topology(servers=1, path_mtus={"server1": (1500, 5)}))  # no IPv4 link carries an MTU of 5
    with pytest.raises(LabError, match="failed"):
        lab.up()
    assert traces(lab) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_goes_away_when_interrupted(name: str, number: signal.Signals) -> None:
    program = (
        "import sys, time\n"
        "from clearway.lab import Lab, Interrupted, interruptible\n"
        "with interruptible(), Lab(sys.argv[1]):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(20) != 0
    assert traces(Lab(name)) == []


def test_what_a_killed_process_left_is_reaped(name: str) -> None:
    program = "import os, sys\nfrom clearway.lab import Lab\nLab(sys.argv[1]).up()\nos.kill(os.getpid(), 9)\n"
    assert subprocess.run([sys.executable, "-c", program, name], timeout=30, check=False).returncode == -9
    assert Lab(name).is_up()
    assert name in reap()
    assert traces(Lab(name)) == []


def test_stays_up_until_taken_down(name: str) -> None:
    try:
        summary = commands.up(name)
        assert summary.hosts[0].host == "client1"
        assert name not in reap()
        with pytest.raises(LabError, match="up already"):
            commands.up(name)
    finally:
        assert commands.down(name)
    assert not commands.down(name)
    assert traces(Lab(name)) == []


def test_labs_coexist(plain_lab: Lab, name: str) -> None:
    with Lab(name, Topology(clients=1, servers=1)) as other:
        answer = other.client.ns.run(
            "curl", "-sg", "--max-time", "5", f"http://{other.servers[0].address(4)}:8080/"
        )
        assert answer.stdout.startswith("server1")
    wait_until("the first lab goes on", lambda: plain_lab.client.ns.run("ping", "-c1", plain_lab.vip(4)))


@pytest.mark.parametrize("wrong", ["", "Lab", "a/b", "-x", "x" * 25, "../up"])
def test_refuses_names_that_cannot_be_one(wrong: str) -> None:
    with pytest.raises(LabError, match="cannot name a lab"):
        Lab(wrong)


def test_shell_on_an_unknown_host_says_which_there_are(plain_lab: Lab) -> None:
    with pytest.raises(LabError, match=r"there is no nobody in lab .*; its hosts: client1, .*node"):
        commands.shell(plain_lab.name, "nobody")


def test_shell_without_lab_says_what_to_do(name: str) -> None:
    with pytest.raises(LabError, match="clearway lab up"):
        commands.shell(name, "node")
