# SPDX-License-Identifier: Apache-2.0
"""Netlink: what is written is read back, nonsense is survived, and the real kernel is understood."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.linux import rtnetlink
from clearway.linux.netlink import (
    NETLINK_ROUTE,
    Conversation,
    Listener,
    Message,
    NetlinkError,
    OverrunError,
    attribute,
    attributes,
    messages,
)
from clearway.linux.xdp_features import XdpFeatures


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40)))
def test_attributes_are_read_back(wanted: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, value) for kind, value in wanted.items())) == wanted


@given(st.binary(max_size=200))
def test_nonsense_is_survived(data: bytes) -> None:
    attributes(data)
    list(messages(data))


def test_messages_of_one_datagram() -> None:
    data = struct.pack("=IHHII3sx", 19, 16, 2, 7, 0, b"abc") + struct.pack("=IHHII", 16, 3, 0, 8, 0)
    assert list(messages(data)) == [(7, Message(16, 2, b"abc")), (8, Message(3, 0, b""))]


def test_bridge_port_is_not_taken_for_its_device() -> None:
    body = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, 5, 0, 0) + attribute(3, b"eth0\0")
    assert rtnetlink.decode_link(Message(rtnetlink.RTM_DELLINK, 0, body)) is None


def test_lower_device_of_another_namespace_is_unknown() -> None:
    body = struct.pack("=BxHiII", 0, 0, 5, 0, 0) + attribute(3, b"v\0") + attribute(5, b"\x09\0\0\0")
    assert rtnetlink.decode_link(Message(rtnetlink.RTM_NEWLINK, 0, body)) is not None
    found = rtnetlink.decode_link(Message(rtnetlink.RTM_NEWLINK, 0, body + attribute(37, b"\0\0\0\0")))
    assert found is not None
    assert found.lower == 0


def test_vlan_device_is_understood() -> None:
    data = attribute(1, b"\x64\0") + attribute(5, b"\x88\xa8")
    info = attribute(1, b"vlan\0") + attribute(2, data)
    body = struct.pack("=BxHiII", 0, 0, 5, 0, 0) + attribute(3, b"v\0") + attribute(18, info)
    found = rtnetlink.decode_link(Message(rtnetlink.RTM_NEWLINK, 0, body))
    assert found is not None
    assert found.vlan == rtnetlink.Vlan(100, rtnetlink.VLAN_8021AD, False)


@pytest.mark.parametrize(("settings", "families"), [((0, 0), set()), ((1, 0), {4}), ((0, 1), {6})])
def test_bridge_that_filters_is_known(settings: tuple[int, int], families: set[int]) -> None:
    data = b"".join(attribute(36 + number, bytes([value])) for number, value in enumerate(settings))
    info = attribute(1, b"bridge\0") + attribute(2, data)
    body = struct.pack("=BxHiII", 0, 0, 5, 0, 0) + attribute(3, b"br0\0") + attribute(18, info)
    found = rtnetlink.decode_link(Message(rtnetlink.RTM_NEWLINK, 0, body))
    assert found is not None
    assert found.filters == families


def test_own_address_of_a_point_to_point_link_counts() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 5)
    body += attribute(1, bytes([10, 0, 0, 2])) + attribute(2, bytes([10, 0, 0, 1]))
    found = rtnetlink.decode_address(Message(rtnetlink.RTM_NEWADDR, 0, body))
    assert found is not None
    assert str(found.ip) == "10.0.0.1"


def test_gateway_of_the_other_family_is_the_next_hop() -> None:
    gateway = struct.pack("=H", socket.AF_INET6) + socket.inet_pton(socket.AF_INET6, "fe80::1")
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 0, 0, 0, 1, 0)
    body += attribute(1, bytes([10, 0, 0, 2])) + attribute(4, b"\x05\0\0\0") + attribute(18, gateway)
    found = rtnetlink.decode_route(Message(24, 0, body))
    assert found is not None
    assert (found.ifindex, str(found.ip)) == (5, "fe80::1")


# ---- the kernel this runs on ----


def test_loopback_is_listed() -> None:
    with Conversation(NETLINK_ROUTE) as kernel:
        names = {link.name: link for link in rtnetlink.links(kernel)}
        assert names["lo"].ifindex == socket.if_nametoindex("lo")
        assert not names["lo"].resolves
        assert set(names) == {name for _index, name in socket.if_nameindex()}


def test_refusal_carries_the_kernels_words() -> None:
    with Conversation(NETLINK_ROUTE) as kernel, pytest.raises(NetlinkError) as caught:
        kernel.ask(rtnetlink.RTM_GETROUTE, bytes(3))
    assert caught.value.number > 0
    assert str(caught.value)


def test_conversation_goes_on_after_a_refusal() -> None:
    with Conversation(NETLINK_ROUTE) as kernel:
        with pytest.raises(NetlinkError):
            kernel.ask(rtnetlink.RTM_GETROUTE, bytes(3))
        assert rtnetlink.links(kernel)


def test_silent_listener_returns_at_once() -> None:
    listener = Listener(NETLINK_ROUTE, ())
    try:
        assert listener.read() == []
        assert not listener.drain()
    finally:
        listener.close()


def test_overrun_is_an_error_and_a_notice() -> None:
    """ENOBUFS, as the kernel reports it when it had to drop announcements."""

    class Full:
        def recv(self, _size: int) -> bytes:
            raise OSError(105, "No buffer space available")

        def close(self) -> None:
            pass

    listener = Listener(NETLINK_ROUTE, ())
    listener.close()
    listener.__dict__["_socket"] = Full()
    with pytest.raises(OverrunError):
        listener.read()
    assert listener.drain()


def test_every_device_has_features_where_the_kernel_tells() -> None:
    features = XdpFeatures()
    try:
        if not features.available:
            pytest.skip("this kernel has no netdev family (Linux 6.3)")
        assert set(features.read()) == {index for index, _name in socket.if_nameindex()}
        assert features.group > 0
    finally:
        features.close()
