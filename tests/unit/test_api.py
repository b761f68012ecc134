# SPDX-License-Identifier: Apache-2.0
"""The API over its real socket: answers, refusals in one form, and clients that misbehave."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clearway.api import server
from clearway.api.client import Client, RefusedError, UnreachableError
from clearway.api.views import FlowFilter, StatusView
from tests.unit.api_node import CONFIG, REFUSED_BY_KERNEL, FakeControl, serving


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def path(control: FakeControl, tmp_path: Path) -> Iterator[Path]:
    with serving(control, tmp_path / "api.sock") as listening:
        yield listening


@pytest.fixture
def client(path: Path) -> Client:
    return Client(path, 10)


def refused(client: Client, method: str, *where: str, **query: str) -> list[dict[str, object]]:
    with pytest.raises(RefusedError) as caught:
        getattr(client, method)(*where, **query)
    return caught.value.errors


def raw(path: Path, request: bytes) -> bytes:
    """What the server answers to these bytes, until it closes the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sender:
        sender.settimeout(10)
        sender.connect(str(path))
        sender.sendall(request)
        answer = b""
        while piece := sender.recv(65536):
            answer += piece
        return answer


# ---- reading ----


def test_socket_is_for_its_owner_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_socket_is_gone_after_the_end(control: FakeControl, tmp_path: Path) -> None:
    with serving(control, tmp_path / "api.sock") as listening:
        assert listening.exists()
    assert not listening.exists()


def test_status_is_what_the_view_says(client: Client, control: FakeControl) -> None:
    found = client.get("status")
    expected = control.status()
    parts = ("config", "sweep", "adoption", "settings")
    assert StatusView(**{**found, **{part: getattr(expected, part) for part in parts}}) == expected


def test_configuration_is_complete(client: Client) -> None:
    found = client.get("config")
    assert found["services"][0]["algorithm"] == "maglev"
    assert found["conntrack"]["max_flows"] == CONFIG.conntrack.max_flows


@pytest.mark.parametrize("what", ["services", "endpoints", "nat", "interfaces", "reasons"])
def test_lists_are_named_after_what_they_list(client: Client, what: str) -> None:
    assert client.get(what)[what]


def test_flows_are_passed_on_as_they_come(client: Client, control: FakeControl) -> None:
    control.flow_pieces = [b'{"flows": [', *[b"1," for _ in range(10_000)], b"1]}"]
    assert b"".join(client.stream("flows", service="web", limit=7)) == b"".join(control.flow_pieces)
    assert control.flows_asked == [FlowFilter(service="web", limit=7)]


def test_description_of_the_api_is_there(path: Path) -> None:
    answer = raw(path, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "/v1/services/{service}/endpoints/{endpoint}/drain" in document["paths"]


# ---- changing ----

NEW = b"services: []\n"


def test_plan_changes_nothing(client: Client, control: FakeControl) -> None:
    plan = client.post_yaml("plan", text=NEW)
    assert plan["text"].startswith("- interface eth0")
    assert not plan["empty"]
    assert control.running == CONFIG


def test_apply_replaces_everything(client: Client, control: FakeControl) -> None:
    assert client.post_yaml("apply", text=NEW)["text"].endswith("applied: 0 added, 0 changed, 3 removed")
    assert control.running.services == ()


def test_services_and_endpoints_come_drain_and_go(client: Client, control: FakeControl) -> None:
    service = {"name": "dns", "address": "2001:db8::1", "port": 53, "protocol": "udp"}
    client.post("services", body=service)
    client.post("services", "dns", "endpoints", body={"address": "2001:db8::2", "port": 53})
    client.post("services", "dns", "endpoints", "[2001:db8::2]:53", "drain")
    assert control.running.services[1].endpoints[0].drain
    client.post("services", "dns", "endpoints", "[2001:db8::2]:53", "drain", drain="false")
    assert not control.running.services[1].endpoints[0].drain
    client.delete("services", "dns", "endpoints", "2001:db8::2")
    assert control.running.services[1].endpoints == ()
    client.delete("services", "dns")
    assert control.running == CONFIG


def test_down_answers_before_the_daemon_ends(client: Client, control: FakeControl) -> None:
    assert client.post("down") == {"removed": True}
    assert control.stopped.wait(5)
    assert control.removed


# ---- refusing ----


def test_file_that_is_refused_is_named_with_the_line(client: Client, control: FakeControl) -> None:
    with pytest.raises(RefusedError) as caught:
        client.post_yaml("apply", text=b"services:\n  - name: web\n    prot: tcp\n", source="new.yaml")
    messages = str(caught.value).splitlines()
    assert all(message.startswith("new.yaml: services[0].") for message in messages)
    assert any(error["path"] == "services[0].prot" and error["line"] == 3 for error in caught.value.errors)
    assert control.running == CONFIG


def test_edit_that_is_refused_does_not_blame_the_file(client: Client, control: FakeControl) -> None:
    [error] = refused(client, "delete", "services", "wbe")
    assert error["message"] == "there is no service wbe; services: web"
    assert control.running == CONFIG


@pytest.mark.parametrize(
    ("method", "where", "query", "message"),
    [
        ("get", ["nothing"], {}, "there is no /v1/nothing"),
        ("delete", ["services", ""], {}, "there is no /v1/services/"),
        ("delete", ["services", "\udcff"], {}, "there is no service"),
        ("get", ["endpoints"], {"service": "\udcff"}, "there is no service"),
        ("delete", ["status"], {}, "/v1/status does not know DELETE"),
        ("get", ["flows"], {"limit": "many"}, "limit: "),
        ("get", ["flows"], {"limit": "-1"}, "limit -1 is negative"),
        ("get", ["endpoints"], {"service": "wbe"}, "there is no service wbe; services: web"),
        ("post", ["services"], {}, "the body has to be an object"),
        ("post", ["apply"], {"source": "x.yaml"}, "x.yaml: is empty"),
        ("post", ["apply"], {"source": "standard input"}, "standard input: is empty"),
    ],
)
def test_every_refusal_has_the_same_form(
    client: Client, method: str, where: list[str], query: dict[str, str], message: str
) -> None:
    [error] = refused(client, method, *where, **query)
    assert str(error["message"]).startswith(message)


def test_what_the_kernel_refuses_is_passed_on(client: Client, control: FakeControl) -> None:
    control.broken = REFUSED_BY_KERNEL
    [error] = refused(client, "get", "status")
    assert error == {"message": str(REFUSED_BY_KERNEL)}


def test_bug_is_no_traceback_for_the_client(client: Client, control: FakeControl) -> None:
    control.broken = ZeroDivisionError("secret")
    [error] = refused(client, "get", "status")
    assert error["message"] == "the daemon could not do that (ZeroDivisionError); its log says more"
    control.broken = None
    assert client.get("status")["pid"] == 4711


def test_user_is_in_the_log(client: Client, control: FakeControl) -> None:
    client.post_yaml("apply", text=NEW)
    deadline = time.monotonic() + 5  # it is written after the answer has been sent
    while not (entries := [entry for entry in control.log if entry.get("path") == "/v1/apply"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [entry] = entries
    assert (entry["by"], entry["pid"], entry["status"]) == (f"uid {os.getuid()}", os.getpid(), 200)
    assert entry["log_level"] == "info"


# ---- misbehaving ----


@pytest.mark.parametrize(
    "request_bytes",
    [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + bytes(300), b"GET /" + b"a" * 200_000],
)
def test_nonsense_is_refused_in_the_same_form(path: Path, client: Client, request_bytes: bytes) -> None:
    head, _, body = raw(path, request_bytes).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0].split()[1].startswith(b"4")
    assert json.loads(body)["errors"][0]["message"]
    assert client.get("status")


def test_body_that_is_not_yaml_is_refused(client: Client) -> None:
    with pytest.raises(RefusedError):
        client.post_yaml("apply", text=b"\xff\xfe\x00{{{", source="x.yaml")


def test_too_big_a_body_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_LIMIT", 1 << 20)
    with pytest.raises(RefusedError, match="bigger than 1 MiB"):
        client.post_yaml("plan", text=b"#" * (2 << 20))
    assert client.get("status")


def test_slow_body_is_given_up(path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.3)
    begun = time.monotonic()
    answer = raw(path, b"POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nserv")
    assert b"was not complete after" in answer
    assert time.monotonic() - begun < 5
    assert client.get("status")


def test_silent_connection_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    assert raw(path, b"") == b""
    assert raw(path, b"GET /v1/sta") == b""


def test_slow_clients_do_not_hold_others_up(path: Path, client: Client) -> None:
    slow = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(50)]
    try:
        for number, sender in enumerate(slow):
            sender.connect(str(path))
            sender.sendall(b"POST /v1/plan HTTP/1.1\r\nContent-Length: 9\r\n"[: 10 + number % 30])
        begun = time.monotonic()
        assert client.get("status")
        assert time.monotonic() - begun < 3
    finally:
        for sender in slow:
            sender.close()


def test_client_that_leaves_in_the_middle_harms_nobody(
    path: Path, client: Client, control: FakeControl
) -> None:
    control.flow_pieces = [b"x" * 65536] * 500
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sender:
            sender.connect(str(path))
            sender.sendall(b"GET /v1/flows HTTP/1.1\r\nHost: x\r\n\r\n")
            sender.recv(100)
    assert client.get("status")


# ---- nobody there ----


def test_no_daemon_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="start it with `clearway up"):
        Client(tmp_path / "none").get("status")


def test_stale_socket_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "api.sock"))
    with pytest.raises(UnreachableError, match="no daemon is running"):
        Client(tmp_path / "api.sock").get("status")


def test_daemon_that_hangs_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        hanging.bind(str(tmp_path / "api.sock"))
        hanging.listen()
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.2 s"):
            Client(tmp_path / "api.sock", 0.2).get("status")
