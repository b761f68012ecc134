# SPDX-License-Identifier: Apache-2.0
"""Blocklists in files, on real traffic: taken anew when they change, and not when they are broken."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clearway.lab import Daemon, Lab
from clearway.lab.run import wait_until
from tests.net.configuration import data

OTHERS = ["192.0.2.0/24", "2001:db8:bad::/48"]
SOON = 15.0


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """The file of the list."""
    path = tmp_path / "bad.txt"
    path.write_text("\n".join(OTHERS))
    return path


@pytest.fixture
def scrubbed(lab: Lab, hook: str, bad: Path) -> Iterator[Daemon]:
    lists = {"blocklists": [{"name": "bad", "file": str(bad)}]}
    with lab.daemon(json.dumps({**data(lab, hook), "scrub": lists})) as running:
        yield running


def the_list(daemon: Daemon) -> dict[str, Any]:
    [found] = daemon.json("get", "lists")["lists"]
    return dict(found)


def reaches(lab: Lab, family: int) -> bool:
    """Does the client get through to the node?"""
    address = lab.node_address(lab.client.name, family)
    return lab.client.ns.run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0


def echoes(near: socket.socket) -> bool:
    """nginx answers on a connection that stays."""
    near.settimeout(1)
    try:
        near.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
        return near.recv(65536).startswith(b"HTTP/1.1 200")
    except TimeoutError:
        return False


def test_list_is_taken_anew_when_its_file_changes(lab: Lab, scrubbed: Daemon, bad: Path, family: int) -> None:
    """What is listed then stops at once, also on connections that are open; they go on afterwards."""
    near = lab.client.ns.connect((lab.vip(family), 80))
    assert reaches(lab, family) and echoes(near)
    assert (the_list(scrubbed)["ipv4"], the_list(scrubbed)["ipv6"]) == (1, 1)

    bad.write_text("\n".join([*OTHERS, f"{lab.client.address(family)} # this one"]))
    wait_until("the list is taken anew", lambda: not reaches(lab, family), timeout=SOON)
    assert not echoes(near)
    found = the_list(scrubbed)
    assert found[f"ipv{family}"] == 2 and found["packets"] > 0
    server = f"{lab.vip(4)}:80" if family == 4 else f"[{lab.vip(6)}]:80"
    client = lab.client.address(family)
    ends = (f"{client}:4000" if family == 4 else f"[{client}]:4000", server, "tcp")
    said = scrubbed.cli("explain", "flow", *ends).stdout
    assert said == f"dropped: {client} is in the blocklist bad\n"
    reasons = {item["reason"]: item["packets"] for item in scrubbed.json("get", "reasons")["reasons"]}
    assert reasons["drop_blocklist"] >= found["packets"]

    bad.write_text("\n".join(OTHERS))
    wait_until("the client gets through again", lambda: reaches(lab, family), timeout=SOON)
    near.settimeout(SOON)
    assert near.recv(65536).startswith(b"HTTP/1.1 200"), "TCP has sent it again"
    near.close()


def test_broken_file_changes_nothing_and_is_told(lab: Lab, scrubbed: Daemon, bad: Path, family: int) -> None:
    bad.write_text(lab.client.address(family))
    wait_until("the client is blocked", lambda: not reaches(lab, family), timeout=SOON)
    bad.write_text("10.0.0.0/8\nten dot zero\n")
    wait_until("the file is refused", lambda: scrubbed.json("status")["waiting"], timeout=SOON)
    [sentence] = scrubbed.json("status")["waiting"]
    assert f"{bad} (line 2)" in sentence and "is not an IPv4 or IPv6 prefix" in sentence
    assert not reaches(lab, family)
    assert the_list(scrubbed)[f"ipv{family}"] == 1
    assert scrubbed.cli("apply", str(scrubbed.config_path)).returncode == 0, "the rest can be changed"

    scrubbed.kill()
    assert not reaches(lab, family), "the data path goes on without the daemon"
    scrubbed.start()
    assert not reaches(lab, family), "and with a new one that cannot read the file either"
    assert the_list(scrubbed)["ipv4"] is None
    [sentence] = scrubbed.json("status")["waiting"]
    assert "(line 2)" in sentence
    bad.write_text("\n".join(OTHERS))
    wait_until("the daemon takes the file", lambda: reaches(lab, family), timeout=SOON)
    assert scrubbed.json("status")["waiting"] == []


def test_node_comes_up_without_a_list_that_is_not_there(lab: Lab, hook: str, bad: Path, family: int) -> None:
    """And takes it when it comes."""
    bad.unlink()
    lists = {"blocklists": [{"name": "bad", "file": str(bad)}]}
    with lab.daemon(json.dumps({**data(lab, hook), "scrub": lists})) as running:
        assert reaches(lab, family)
        [sentence] = running.json("status")["waiting"]
        assert "No such file or directory" in sentence
        bad.write_text(lab.client.address(family))
        wait_until("the list is taken", lambda: not reaches(lab, family), timeout=SOON)
        assert running.json("status")["waiting"] == []


def test_list_that_is_not_there_is_refused(lab: Lab, hook: str, scrubbed: Daemon, bad: Path) -> None:
    lists = {"blocklists": [{"name": "bad", "file": f"{bad}.not"}]}
    scrubbed.config_path.write_text(json.dumps({**data(lab, hook), "scrub": lists}))
    done = scrubbed.cli("apply", str(scrubbed.config_path), check=False)
    assert done.returncode != 0
    assert f"{bad}.not cannot be read: No such file or directory" in done.stderr
    assert the_list(scrubbed)["file"] == str(bad)
