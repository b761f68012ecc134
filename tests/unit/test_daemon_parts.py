# SPDX-License-Identifier: Apache-2.0
"""The parts the daemon is made of: lock, state, file watch, notices, throttle."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clearway.daemon import doctor, state
from clearway.daemon.doctor import Verdict, verdict
from clearway.daemon.filewatch import FileWatch, Signature, signature
from clearway.daemon.lock import DataPathLock, LockedError, holder
from clearway.daemon.log import Unbreakable
from clearway.daemon.notify import Notifier
from clearway.daemon.throttle import Throttle
from clearway.datapath.features import Check
from clearway.instance import Instance, InstanceError, find_instance
from clearway.linux import nft, rtnetlink


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance("test", tmp_path / "run", tmp_path / "state", tmp_path / "pins")


# ---- instance ----


def test_instance_has_its_own_directories() -> None:
    found = find_instance("blue", {})
    assert (str(found.socket), str(found.state)) == ("/run/blue/api.sock", "/var/lib/blue/state.json")
    assert (str(found.pin_dir), str(found.config)) == ("/sys/fs/bpf/blue", "/etc/clearway/blue.yaml")


def test_directories_can_be_elsewhere() -> None:
    found = find_instance("blue", {"CLEARWAY_STATE_DIR": "/tmp/s", "CLEARWAY_RUN_DIR": "/tmp/r"})
    assert (str(found.lock), str(found.state)) == ("/tmp/r/lock", "/tmp/s/state.json")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a.b", "a b", "x" * 33])
def test_name_that_is_no_directory_is_refused(name: str) -> None:
    with pytest.raises(InstanceError):
        find_instance(name, {})


# ---- lock ----


def test_second_daemon_is_told_who_holds_the_lock(instance: Instance) -> None:
    with DataPathLock(instance):
        assert holder(instance) == os.getpid()
        with pytest.raises(LockedError, match=f"pid {os.getpid()} holds {instance.lock}"):
            DataPathLock(instance)
        assert holder(instance) == os.getpid()


def test_daemon_with_another_run_directory_is_refused_by_the_pins(instance: Instance, tmp_path: Path) -> None:
    other = Instance("test", tmp_path / "elsewhere", instance.state_dir, instance.pin_dir)
    with DataPathLock(instance), pytest.raises(LockedError, match=str(instance.pin_dir)):
        DataPathLock(other)


def test_lock_leaves_nothing_in_the_run_directory(instance: Instance) -> None:
    with DataPathLock(instance):
        pass
    assert not instance.run_dir.exists()
    with DataPathLock(instance):
        assert instance.lock.exists()


def test_lock_spares_what_others_keep_in_the_run_directory(instance: Instance) -> None:
    with DataPathLock(instance):
        (instance.run_dir / "other").touch()
    assert [entry.name for entry in instance.run_dir.iterdir()] == ["other"]


def test_killed_daemon_holds_nothing(instance: Instance) -> None:
    code = (
        "import os, pathlib, signal; from clearway.daemon.lock import DataPathLock;"
        "from clearway.instance import Instance;"
        f"where = [pathlib.Path(p) for p in ({str(instance.run_dir)!r}, 'x', {str(instance.pin_dir)!r})];"
        "lock = DataPathLock(Instance('test', *where)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert instance.lock.exists()
    with DataPathLock(instance):
        assert holder(instance) == os.getpid()


# ---- state ----

STATE = state.State(state.file_hash(b"services: []"), {"services": []}, 4026531840)


def test_state_is_read_back(instance: Instance) -> None:
    assert state.read(instance.state) is None
    state.prepare(instance.state, STATE)
    assert state.read(instance.state) is None
    state.commit(instance.state)
    assert state.read(instance.state) == STATE


def test_state_that_is_not_committed_changes_nothing(instance: Instance) -> None:
    state.prepare(instance.state, STATE)
    state.commit(instance.state)
    state.prepare(instance.state, state.State("other", {}, 1))
    assert state.read(instance.state) == STATE


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"version": 2}', '{"version": 1, "config": {}}', '{"version": 1, "file_sha256": "x"}'],
)
def test_useless_state_is_an_error(instance: Instance, content: str) -> None:
    instance.state_dir.mkdir()
    instance.state.write_text(content)
    with pytest.raises(state.StateError, match=r"state\.json"):
        state.read(instance.state)


def test_removed_state_leaves_nothing(instance: Instance) -> None:
    state.remove(instance.state)
    state.prepare(instance.state, STATE)
    state.commit(instance.state)
    state.prepare(instance.state, STATE)
    state.remove(instance.state)
    assert not instance.state_dir.exists()


def test_state_is_for_its_owner_alone(instance: Instance) -> None:
    state.prepare(instance.state, STATE)
    assert instance.state_dir.stat().st_mode & 0o777 == 0o700


# ---- file watch ----

FIRST, SECOND, THIRD = (Signature(1, inode, 10, 0) for inode in (1, 2, 3))


def seen(*looks: Signature | None) -> list[bool]:
    watch = FileWatch(FIRST)
    return [watch.look(look) for look in looks]


@pytest.mark.parametrize(
    ("looks", "changes"),
    [
        ([FIRST, FIRST], [False, False]),
        ([SECOND, SECOND, SECOND], [False, True, False]),
        ([None, SECOND, SECOND], [False, False, True]),
        ([SECOND, THIRD, THIRD], [False, False, True]),
        ([None, FIRST, FIRST], [False, False, False]),
        ([SECOND, FIRST, FIRST], [False, False, False]),
        ([None, None], [False, False]),
    ],
    ids=["same", "edited", "renamed over", "still being written", "back", "undone", "gone"],
)
def test_file_counts_as_changed_once_it_rests(looks: list[Signature | None], changes: list[bool]) -> None:
    assert seen(*looks) == changes


def test_signature_tells_editors_apart(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert signature(path) is None
    path.write_text("a")
    first = signature(path)
    replacement = tmp_path / "new"
    replacement.write_text("a")
    replacement.replace(path)
    assert signature(path) != first
    second = signature(path)
    path.write_text("ab")
    assert signature(path) != second


# ---- sd_notify ----


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(5)
    return listening


def test_service_manager_hears_what_happens(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 services")
    notifier.reloading()
    notifier.stopping()
    heard = [manager.recv(1000).decode().split("\n") for _ in range(3)]
    assert heard[0][:2] == ["READY=1", "STATUS=2 services"]
    assert heard[1][0] == "RELOADING=1"
    assert heard[1][1].startswith("MONOTONIC_USEC=")
    assert heard[2] == ["STOPPING=1"]


def test_abstract_socket_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"clearway-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert listening.recv(100) == b"STOPPING=1"


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    Notifier({}).ready("fine")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("fine")


# ---- throttle ----


def test_throttle_acts_at_once_and_never_misses_the_last() -> None:
    acted: list[str] = []

    async def storm() -> list[str]:
        throttle = Throttle(acted.append, 0.05)
        for number in range(100):
            throttle(f"route {number}")
        at_once = list(acted)
        await asyncio.sleep(0.2)
        throttle("route 100")
        throttle.cancel()
        return at_once

    assert asyncio.run(storm()) == ["route 0"]
    assert acted == ["route 0", "route 99", "route 100"]


# ---- log ----


def logged(*arguments: str) -> list[str]:
    code = (
        "import sys, logging; from clearway.daemon import log; import structlog;"
        "log.configure(as_json='json' in sys.argv, debug='debug' in sys.argv);"
        "structlog.get_logger().info('attached', interface='eth0');"
        "structlog.get_logger().debug('details');"
        "logging.getLogger('other').warning('of a library')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_log_for_people_is_a_line_an_event_without_colours() -> None:
    lines = logged()
    assert len(lines) == 2
    assert "attached" in lines[0]
    assert "interface=eth0" in lines[0]
    assert "of a library" in lines[1]
    assert not any("\x1b" in line for line in lines)


def test_log_for_machines_is_json() -> None:
    events = [json.loads(line) for line in logged("json", "debug")]
    assert [event["event"] for event in events] == ["attached", "details", "of a library"]
    assert events[0]["interface"] == "eth0"
    assert events[0]["level"] == "info"


# ---- log ----


def test_log_outlives_its_reader() -> None:
    """Not even the interpreter's last flush fails."""
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import structlog; from clearway.daemon import log; log.configure(as_json=False, debug=False);"
        "[structlog.get_logger().warning('lost') for _ in range(3)]; __import__('logging').warning('lost')"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=writing, check=False, timeout=60)
    os.close(writing)
    assert done.returncode == 0


def test_log_outlives_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        stream = Unbreakable(file)
        assert stream.write("seen\n") == 5
    assert stream.write("lost\n") == 5
    assert not stream.isatty()
    assert (tmp_path / "log").read_text() == "seen\n"


# ---- doctor ----


@pytest.mark.parametrize(
    ("ok", "needed", "fallback", "expected"),
    [
        (True, True, "", "ok"),
        (False, True, "run as root", "missing"),
        (False, False, "nothing is routed: sysctl -w net.ipv4.ip_forward=1", "to do"),
        (False, False, "hook: auto takes TC", "falls back"),
    ],
)
def test_verdict_says_who_has_to_do_something(
    ok: bool, needed: bool, fallback: str, expected: Verdict
) -> None:
    assert verdict(Check("a", ok, needed, "", fallback)) == expected


def test_nothing_is_to_do_about_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("a", True, True, "there", "get it"), Check("b", False, False, "absent", "do without")]
    monkeypatch.setattr(doctor, "checks", lambda: found)
    monkeypatch.setattr(rtnetlink, "links", lambda _kernel: [])
    monkeypatch.setattr(nft, "available", lambda: False)
    *others, program = doctor.examine()
    assert [check.fallback for check in others] == ["", "do without"]
    assert program.fallback.endswith("install nftables")
