# SPDX-License-Identifier: Apache-2.0
"""Clients reach servers through services, and each side sees what it should."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from clearway.lab import SERVER_PORT, Daemon, Lab
from clearway.lab.measure import distribution
from tests.net.configuration import (
    FULL_NAT_PORT,
    FULL_NAT_TCP_PORT,
    RAW_PORT,
    TCP_PORT,
    UDP_PORT,
    WEB_PORT,
)
from tests.net.counters import added_up, reasons
from tests.net.traffic import Listeners, pattern, receive_all, same, send_and_close_writing, talk

DOWNLOAD = 50_000_000  # bytes


@pytest.mark.parametrize("port", [WEB_PORT, FULL_NAT_PORT], ids=["nat", "full-nat"])
def test_http_reaches_every_endpoint(lab: Lab, daemon: Daemon, family: int, port: int) -> None:
    answers = distribution(lab.client.ns, f"http://{lab.vip_url(family)}:{port}/", 90)
    assert set(answers) == {"server1", "server2", "server3"}
    assert answers.total() == 90


def test_round_robin_takes_turns(lab: Lab, daemon: Daemon, family: int) -> None:
    answers = distribution(lab.client.ns, f"http://{lab.vip_url(family)}:{FULL_NAT_PORT}/", 30)
    assert answers == {"server1": 10, "server2": 10, "server3": 10}


def test_nat_shows_the_server_the_client(lab: Lab, daemon: Daemon, family: int) -> None:
    for client in lab.clients:
        url = f"http://{lab.vip_url(family)}/"
        _, address, _ = client.ns.run("curl", "-sSg", "--max-time", "5", url).stdout.split()
        assert address == client.address(family)


def test_full_nat_shows_the_server_the_node(lab: Lab, daemon: Daemon, family: int) -> None:
    url = f"http://{lab.vip_url(family)}:{FULL_NAT_PORT}/"
    server, address, _ = lab.client.ns.run("curl", "-sSg", "--max-time", "5", url).stdout.split()
    assert address == lab[server].plan.gateway(family)


def test_outside_is_served_as_well(lab: Lab, daemon: Daemon, family: int) -> None:
    url = f"http://{lab.vip_url(family)}/"
    _, address, _ = lab.outside.ns.run("curl", "-sSg", "--max-time", "5", url).stdout.split()
    assert address == lab.outside.address(family)


@pytest.mark.parametrize("port", [TCP_PORT, FULL_NAT_TCP_PORT], ids=["nat", "full-nat"])
def test_half_close_keeps_the_download_going(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int, port: int
) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    client = stack.enter_context(lab.client.ns.connect((lab.vip(family), port), timeout=20))
    server = listeners.accept()
    client.sendall(b"everything, please")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server.socket) == b"everything, please"
    content = pattern(DOWNLOAD)
    sending = send_and_close_writing(server.socket, content)
    got = receive_all(client)
    sending.join(10)
    assert len(got) == DOWNLOAD
    assert same(got, content)


def test_upload_arrives_whole(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    client = stack.enter_context(lab.client.ns.connect((lab.vip(family), TCP_PORT), timeout=20))
    server = listeners.accept()
    content = pattern(20_000_000)
    sending = send_and_close_writing(client, content)
    got = receive_all(server.socket)
    sending.join(10)
    assert same(got, content)
    talk_after = server.socket.send(b"thanks")
    assert client.recv(64)[:talk_after] == b"thanks"


def test_a_connection_is_reset_by_either_end(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    for side in ("client", "server"):
        client = stack.enter_context(lab.client.ns.connect((lab.vip(family), TCP_PORT)))
        server = listeners.accept()
        talk(client, server.socket)
        ending, other = (client, server.socket) if side == "client" else (server.socket, client)
        ending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends RST
        ending.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_a_closing_tuple_is_used_again(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    port = 0
    for _ in range(5):
        client = stack.enter_context(
            lab.client.ns.open_socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
        )
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.settimeout(5)
        client.bind((lab.client.address(family), port))
        port = client.getsockname()[1]
        client.connect((lab.vip(family), TCP_PORT))
        server = listeners.accept()
        assert server.peer == (lab.client.address(family), port)
        talk(client, server.socket)
        server.socket.close()  # the server's end waits, so that the client may use its port at once
        assert client.recv(1) == b""
        client.close()


def test_udp_service_answers_from_its_own_address(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int
) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT, socket.SOCK_DGRAM))
    served = set()
    for number in range(30):
        vip = (lab.vip(family), UDP_PORT)
        client = stack.enter_context(lab.client.ns.connect(vip, kind=socket.SOCK_DGRAM))
        question = b"question %d" % number
        client.send(question)
        at, server, datagram, peer = listeners.receive()
        assert datagram == question
        assert peer == (lab.client.address(family), client.getsockname()[1])
        at.sendto(question[::-1], peer)
        assert client.recv(64) == question[::-1]  # connected: only the service's own address gets through
        served.add(server)
    assert served == {"server1", "server2", "server3"}


def test_udp_datagram_of_any_size_arrives(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    """Empty, odd, as long as the link carries, and in fragments."""
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT, socket.SOCK_DGRAM))
    client = stack.enter_context(lab.client.ns.connect((lab.vip(family), UDP_PORT), kind=socket.SOCK_DGRAM))
    for size in (0, 1, 999, 1452, 1472, 4000, 20000):
        question = pattern(size)
        client.send(question)
        at, _, datagram, peer = listeners.receive()
        assert same(datagram, question), f"{size} bytes to the server"
        at.sendto(question[::-1], peer)
        assert same(client.recv(1 << 16), question[::-1]), f"{size} bytes to the client"


def test_what_no_service_claims_is_linux_own(lab: Lab, daemon: Daemon, family: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.client.ns.connect((lab.vip(family), 81))
    direct = lab.client.ns.connect((lab.servers[0].address(family), SERVER_PORT))
    direct.close()


def test_every_packet_is_counted_under_one_reason(lab: Lab, daemon: Daemon) -> None:
    before = reasons(daemon)
    answers = distribution(lab.client.ns, f"http://{lab.vip_url(4)}/", 20)
    assert answers.total() == 20
    after = added_up(daemon)
    assert after["forward_new"] - before["forward_new"] >= 20
    assert after["forward_state"] > before["forward_state"]
