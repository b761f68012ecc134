# SPDX-License-Identifier: Apache-2.0
"""How a daemon starts, takes changes, is started again, and goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clearway.api.refusals import DATA_PATH_GONE
from clearway.datapath import Datapath
from clearway.lab import Daemon, Lab, LabError, wait_until
from clearway.lab.daemon import traces
from clearway.lab.run import patience, run, spawn
from clearway.linux.neighbours import OUR_PROTOCOL
from tests.net.configuration import data, standard
from tests.net.devices import ifindex_of
from tests.net.test_follow import following, is_followed


@pytest.fixture(scope="module", params=["tc"])
def hook(request: pytest.FixtureRequest) -> str:
    """What a daemon does with its life does not depend on the hook."""
    return str(request.param)


@pytest.fixture
def stopped(lab: Lab, hook: str, lab_names: Iterator[str]) -> Iterator[Daemon]:
    """A daemon that has not been started yet."""
    instance = f"cw-{next(lab_names)}"
    daemon = Daemon(lab.node, instance, lab.directory / instance, standard(lab, hook))
    yield daemon
    daemon.down()


def served_by(daemon: Daemon, service: str) -> set[str]:
    """States of a service's endpoints, with their addresses."""
    shown = daemon.json("get", "endpoints", "--service", service)["endpoints"]
    return {f"{item['address']} {item['state']}" for item in shown}


def kept_neighbours(lab: Lab) -> str:
    return lab.node.ip("neighbour", "show", "proto", str(OUR_PROTOCOL))


def cli_outside(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in the namespace of the tests, where none of the node's interfaces is."""
    argv = [sys.executable, "-m", "clearway", "--instance", daemon.instance, *arguments]
    return run(argv, env=daemon.environment, check=False)


# ---- a terminal, or a follower ----


@pytest.mark.parametrize("end", ["sigterm", "sigkill", "down"])
def test_follower_is_told_that_the_daemon_has_gone(stopped: Daemon, tmp_path: Path, end: str) -> None:
    stopped.start()
    with following(stopped, tmp_path / "ended") as follower:
        time.sleep(0.5 * patience())  # for the beginning of the answer to arrive
        assert follower.poll() is None
        _end(stopped, end)
        assert follower.wait(5 * patience()) == 3
    assert "the daemon has stopped" in (tmp_path / "ended").read_text()
    assert "Traceback" not in stopped.log_path.read_text()
    if end == "down":
        return
    stopped.start()
    assert not is_followed(stopped)


def _end(daemon: Daemon, how: str) -> None:
    match how:
        case "sigterm":
            assert daemon.stop() == 0
        case "sigkill":
            daemon.kill()
        case "down":
            daemon.cli("down")


def test_down_needs_no_terminal(lab: Lab, stopped: Daemon) -> None:
    """The terminal that the daemon was started from is closed: it can write nothing, and works."""
    terminal, its_stderr = os.openpty()
    stopped.process = subprocess.Popen(
        stopped.argv("run", "-c", str(stopped.config_path)),
        stderr=its_stderr,
        text=True,
        env={**os.environ, **stopped.environment},
    )
    os.close(its_stderr)
    os.close(terminal)
    wait_until("it answers", lambda: stopped.cli("status", check=False).returncode == 0, timeout=60)
    assert stopped.cli("down").returncode == 0
    assert stopped.process.wait(30) == 0
    assert traces(stopped.instance) == []


def test_pins_that_somebody_removed_are_told_plainly(lab: Lab, stopped: Daemon) -> None:
    stopped.start()
    shutil.rmtree(f"/sys/fs/bpf/{stopped.instance}")
    status = stopped.cli("status", check=False)
    assert (status.returncode, status.stderr) == (1, f"clearway: {DATA_PATH_GONE}\n")
    assert stopped.cli("down").returncode == 0
    assert traces(stopped.instance) == []


# ---- starting ----


def test_refused_first_start_leaves_nothing(lab: Lab, stopped: Daemon) -> None:
    stopped.config_path.write_text("services: [{name: web}]")
    with pytest.raises(LabError, match=r"ended \(1\): .*services\[0\]\.address"):
        stopped.start()
    assert traces(stopped.instance) == []
    assert not (stopped.directory / "state").exists()


def test_start_that_does_not_fit_the_machine_leaves_nothing(lab: Lab, stopped: Daemon) -> None:
    """Known only when the tables are compiled: the host's own ports."""
    first = data(lab, "tc")
    first["nat"][0]["ports"] = "1024-65535"
    stopped.config_path.write_text(json.dumps(first))
    with pytest.raises(LabError, match=r"ended \(1\): .*nat\[0\]\.ports.*overlaps the host's own ports"):
        stopped.start()
    assert traces(stopped.instance) == []


def test_interface_may_come_after_the_daemon(lab: Lab, stopped: Daemon) -> None:
    wanted = data(lab, "tc")
    wanted["interfaces"].append({"name": "late", "hook": "tc"})
    wanted["nat"].append({"name": "late", "source": "10.9.0.0/16", "interface": "late", "masquerade": True})
    stopped.config_path.write_text(json.dumps(wanted))
    stopped.start()
    waiting = ["interface late is not there", "nat late waits for interface late"]
    assert stopped.json("status")["waiting"] == waiting
    lab.node.ip("link", "add", "late", "type", "veth", "peer", "name", "late2")
    wait_until("nothing waits", lambda: stopped.json("status")["waiting"] == [], timeout=5)
    states = {item["name"]: item["state"] for item in stopped.json("get", "nat")["nat"]}
    assert states["late"] == "active"
    lab.node.ip("link", "delete", "late")


# ---- changes, and starting again ----


def test_changes_of_the_api_outlive_the_daemon_until_the_file_changes(lab: Lab, own_daemon: Daemon) -> None:
    victim = lab["server2"].address(4)
    own_daemon.cli("endpoint", "drain", "web4", victim)
    own_daemon.cli("service", "remove", "udp6")
    own_daemon.kill()
    own_daemon.start()
    status = own_daemon.json("status")
    assert status["config"]["changed_by_api"] is True
    assert f"{victim} draining" in served_by(own_daemon, "web4")
    assert "udp6" not in own_daemon.cli("get", "services").stdout

    own_daemon.stop()
    text = own_daemon.config_path.read_text()
    own_daemon.config_path.write_text(text + "\n")
    own_daemon.start()
    assert own_daemon.json("status")["config"]["changed_by_api"] is False
    assert f"{victim} active" in served_by(own_daemon, "web4")
    assert "udp6" in own_daemon.cli("get", "services").stdout


def test_refused_file_does_not_keep_a_running_data_path_from_its_daemon(lab: Lab, own_daemon: Daemon) -> None:
    own_daemon.cli("service", "remove", "udp6")
    own_daemon.kill()
    own_daemon.config_path.write_text("servicse: []")
    own_daemon.start()
    status = own_daemon.json("status")
    assert "servicse" in status["config"]["refused"]
    assert status["services"] == 9
    lab.client.ns.connect((lab.vip(4), 80)).close()
    own_daemon.config_path.write_text(standard(lab, "tc"))
    # The very file that the stored state began with: what the API made of it counts again.
    wait_until("the mended file is taken", lambda: own_daemon.json("status")["config"]["refused"] is None)
    assert own_daemon.json("status")["services"] == 9


def test_refused_file_is_one_line_in_the_log(lab: Lab, own_daemon: Daemon) -> None:
    own_daemon.config_path.write_text("services: [{name: a}, {name: b}]")
    refused = "the new configuration is refused, the old one stays"
    wait_until("it is refused", lambda: refused in own_daemon.log_path.read_text(), timeout=5)
    lines = [line for line in own_daemon.log_path.read_text().splitlines() if refused in line]
    assert len(lines) == 1
    assert "services[0].address" in lines[0]
    assert "services[1].address" in lines[0]
    assert own_daemon.json("status")["services"] == 10


def test_hangup_takes_the_file_at_once(lab: Lab, own_daemon: Daemon) -> None:
    changed = data(lab, "tc")
    del changed["services"][1:]
    own_daemon.config_path.write_text(json.dumps(changed))
    os.kill(own_daemon.json("status")["pid"], signal.SIGHUP)
    wait_until("it is taken", lambda: own_daemon.json("status")["services"] == 1, timeout=5)


def test_hangup_while_it_starts_takes_the_file_once_it_runs(lab: Lab, stopped: Daemon) -> None:
    argv = stopped.argv("run", "-c", str(stopped.config_path))
    stopped.process = spawn(argv, output=stopped.log_path, env=stopped.environment)
    maps = Path("/sys/fs/bpf") / stopped.instance / "maps"
    wait_until("it loads", maps.is_dir, timeout=60, every=0.001)
    os.kill(stopped.process.pid, signal.SIGHUP)
    wait_until("it is told", lambda: "why=SIGHUP" in stopped.log_path.read_text(), timeout=60)
    assert stopped.json("status")["services"] == 10


def test_change_is_all_or_nothing(lab: Lab, own_daemon: Daemon) -> None:
    """A hook that cannot be had: what was attached for the sake of the change is detached again."""
    lab.node.ip("link", "add", "free", "type", "veth", "peer", "name", "free2")
    wanted = data(lab, "tc")
    wanted["interfaces"] += [{"name": "free", "hook": "tc"}, {"name": "lo", "hook": "xdp"}]
    del wanted["services"][0]
    before = own_daemon.json("status")
    own_daemon.config_path.with_suffix(".new").write_text(json.dumps(wanted))
    refused = own_daemon.cli("apply", str(own_daemon.config_path.with_suffix(".new")), check=False)
    assert refused.returncode == 1
    assert "interface lo" in refused.stderr
    after = own_daemon.json("status")
    assert (after["epoch"], after["services"], after["interfaces"]) == (
        before["epoch"],
        before["services"],
        before["interfaces"],
    )
    assert "free" not in own_daemon.cli("get", "interfaces").stdout
    own_daemon.stop()
    own_daemon.start()
    assert own_daemon.json("status")["services"] == before["services"]
    lab.node.ip("link", "delete", "free")


def test_host_that_changes_its_own_ports_moves_the_translated_ones(lab: Lab, own_daemon: Daemon) -> None:
    before = lab.node.read("/proc/sys/net/ipv4/ip_local_port_range").split()

    def ports() -> str:
        return str(own_daemon.json("get", "nat")["nat"][0]["ports"])

    lab.node.sysctl({"ipv4/ip_local_port_range": "1024 40000"})
    wait_until("NAT takes other ports", lambda: ports() == "40001-65535", timeout=5)
    lab.node.sysctl({"ipv4/ip_local_port_range": " ".join(before)})


# ---- going ----


def test_down_ends_the_daemon_and_leaves_nothing(lab: Lab, own_daemon: Daemon) -> None:
    assert kept_neighbours(lab)
    assert cli_outside(own_daemon, "down").returncode == 0
    assert own_daemon.process is not None
    assert own_daemon.process.wait(5) == 0
    assert traces(own_daemon.instance) == []
    assert not (own_daemon.directory / "state").exists()
    assert kept_neighbours(lab) == ""


def test_down_cleans_up_after_a_killed_daemon_from_anywhere(lab: Lab, own_daemon: Daemon) -> None:
    own_daemon.kill()
    assert kept_neighbours(lab)
    done = cli_outside(own_daemon, "down")
    assert (done.returncode, done.stderr) == (0, "")
    assert traces(own_daemon.instance) == []
    assert not (own_daemon.directory / "state").exists()
    assert kept_neighbours(lab) == ""


def test_plan_needs_no_daemon(lab: Lab, own_daemon: Daemon) -> None:
    changed = data(lab, "tc")
    del changed["services"][0]
    changed["services"][0]["endpoints"][0]["weight"] = 5
    path = own_daemon.config_path.with_suffix(".new")
    path.write_text(json.dumps(changed))
    with_daemon = own_daemon.json("plan", str(path))
    own_daemon.stop()
    left_behind = json.loads(cli_outside(own_daemon, "plan", str(path), "-o", "json").stdout)
    cli_outside(own_daemon, "down")
    fresh = own_daemon.json("plan", str(path))
    assert with_daemon["summary"] == left_behind["summary"] == "0 to add, 1 to change, 1 to remove"
    assert {change["action"] for change in fresh["changes"]} == {"add"}


# ---- interfaces ----


def test_interface_that_is_made_anew_carries_its_program_again(lab: Lab, own_daemon: Daemon) -> None:
    def state() -> str:
        shown = own_daemon.json("get", "interfaces")["interfaces"]
        return next(str(item["state"]) for item in shown if item["name"] == "client2")

    lab.node.ip("link", "delete", "client2")
    wait_until("its absence is noticed", lambda: state() == "absent", timeout=5)
    assert "interface client2 is not there" in own_daemon.json("status")["waiting"]
    host = lab["client2"]
    lab.node.ip("link", "add", "client2", "type", "veth", "peer", "name", "eth0", "netns", host.ns.name)
    lab.node.ip_batch([f"address add {host.plan.gateway4} dev client2", "link set client2 up"])
    host.ns.ip_batch([f"address add {host.plan.ipv4} dev eth0", "link set eth0 up"])
    host.ns.ip("route", "add", "default", "via", host.plan.gateway(4))
    wait_until("it is attached again", lambda: state() == "attached", timeout=5)
    host.ns.connect((lab.vip(4), 80)).close()
    shown = own_daemon.json("get", "flows", "--address", host.address(4))["flows"]
    assert [flow["service"] for flow in shown] == ["web4"]


def test_hooks_are_moved_by_the_configuration(lab: Lab, own_daemon: Daemon) -> None:
    """And with XDP come the link addresses that it compares with."""
    lab.prepare_for("xdp")
    own_daemon.config_path.write_text(standard(lab, "xdp"))
    own_daemon.cli("apply", str(own_daemon.config_path))
    shown = own_daemon.json("get", "interfaces")["interfaces"]
    assert {item["hook"] for item in shown} == {"xdp"}
    assert {item["reason"] for item in shown} == {"as configured"}
    with Datapath.open(own_daemon.instance) as there:
        _slots, ports = there.table("port_v1").items()
    known = {int(port["ifindex"]): bytes(port["mac"]).hex(":") for port in ports if port["ifindex"]}
    assert set(known) == {ifindex_of(lab, name) for name in lab.interfaces}
    assert known[ifindex_of(lab, "client1")] in lab.node.ip("link", "show", "client1")
    lab.client.ns.connect((lab.vip(4), 80)).close()
    lab.prepare_for("tc")  # where veth takes no frames from XDP

    def reasons() -> list[str]:
        return [str(item["reason"]) for item in own_daemon.json("get", "interfaces")["interfaces"]]

    told = "as configured; XDP hands what leaves by it to TC"
    wait_until("that is told", lambda: all(why.startswith(told) for why in reasons()), timeout=5)
