# SPDX-License-Identifier: Apache-2.0
"""Prefixes that are read and written by the hundred thousand are what one at a time would be."""

from __future__ import annotations

import pickle
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from clearway.model import IPNetwork, Prefixes
from clearway.model.firewall_values import parse_set
from clearway.model.values import network_of

V4 = st.builds(
    lambda n, length: IPv4Network((n, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
V6 = st.builds(
    lambda n, length: IPv6Network((n, length), strict=False),
    # also with groups of zeros, and with IPv4 in it
    st.one_of(
        st.integers(0, 2**128 - 1),
        st.integers(0, 2**49 - 1),
        st.lists(st.sampled_from([0, 0, 1, 0xFFFF]), min_size=8, max_size=8).map(
            lambda groups: sum(group << 16 * place for place, group in enumerate(groups))
        ),
    ),
    st.integers(0, 128),
)
NETWORKS = st.lists(st.one_of(V4, V6), max_size=6)
LENGTHS = st.one_of(
    st.just(""), st.sampled_from(["/", "/08", "/008", "/0008", "/ 8", "/+8", "/129", "/33", "/255.0.0.0"])
)
WRITTEN = st.one_of(
    V4.map(str),
    V6.map(str),
    V6.map(lambda network: network.exploded.upper()),
    st.builds(
        "{}{}".format,
        st.one_of(
            st.ip_addresses().map(str),
            st.builds("::ffff:{}".format, st.ip_addresses(v=4)),
            st.text("0123456789abcF:.", max_size=24),
            st.lists(st.sampled_from(["", "0", "00001", "1", "ffff", "1.2.3.4", "01.2.3.4"]), max_size=9).map(
                ":".join
            ),
            st.lists(st.sampled_from(["0", "1", "01", "255", "256", "", "1e1"]), max_size=5).map(".".join),
        ),
        st.one_of(LENGTHS, st.integers(0, 130).map("/{}".format)),
    ),
    st.text(max_size=6),
)


def one_by_one(words: list[str]) -> list[IPNetwork]:
    return list(dict.fromkeys(network_of(word) for word in words))


def outcome(read: object, words: list[str]) -> object:
    assert callable(read)
    try:
        return list(read(words))
    except PydanticCustomError as error:
        return str(error)


@given(WRITTEN)
@example("10.0.0.0\0")
@example("\ud800.0.0.0")
@example("fe80::1%eth0")
@example("\u0661.0.0.0")
@example("10.0.0.0/\u0668")
@example("1:2:3:4:5:6:7::")
@example("1:2:3:4:5:6:7:8::")
@example("127.1")
def test_what_is_written_is_read_or_refused_as_one_at_a_time(word: str) -> None:
    try:
        expected = [network_of(word)]
    except PydanticCustomError:
        assert Prefixes.read([word]) is None
    else:
        assert list(Prefixes.read([word]) or ()) == expected


@given(st.lists(st.one_of(V4.map(str), V6.map(str), WRITTEN.filter(lambda word: "." in word or ":" in word))))
def test_set_is_read_or_refused_as_its_members_are_one_by_one(words: list[str]) -> None:
    assert outcome(parse_set, words) == outcome(one_by_one, words)


@given(NETWORKS)
def test_networks_come_back_in_their_order_and_as_text(networks: list[IPNetwork]) -> None:
    prefixes = Prefixes.of(networks)
    assert list(prefixes) == list(dict.fromkeys(networks))
    assert prefixes.texts() == list(map(str, prefixes))
    assert Prefixes.read(prefixes.texts()) == prefixes
    assert pickle.loads(pickle.dumps(prefixes)) == prefixes


@given(NETWORKS, st.one_of(st.ip_addresses(), V4.map(lambda one: one[0]), V6.map(lambda one: one[-1])))
def test_address_is_covered_by_what_it_is_in(
    networks: list[IPNetwork], address: IPv4Address | IPv6Address
) -> None:
    covered = any(one.version == address.version and address in one for one in networks)
    assert Prefixes.of(networks).covers(address) == covered


def test_hash_tells_sets_apart_in_any_process() -> None:
    code = "from clearway.model import Prefixes; print(hash(Prefixes.read(['10.0.0.0/8', '::1'])))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    prefixes = Prefixes.of([ip_network("10.0.0.0/8"), ip_network("::1")])
    assert int(other.stdout) == hash(prefixes)
    assert hash(Prefixes.of([ip_network("10.0.0.0/8")])) != hash(prefixes)


def test_families_are_kept_apart() -> None:
    prefixes = Prefixes.of(map(ip_network, ("10.0.0.0/8", "::1", "10.0.0.1")))
    assert prefixes.of_family(4) == bytes([10, 0, 0, 0, 8, 10, 0, 0, 1, 32])
    assert prefixes.of_family(6) == bytes(15) + bytes([1, 128])


@pytest.mark.parametrize("value", [[80, "10.0.0.0/8"], ["80", "10.0.0.0/8"], ["10.0.0.0/8", "80-90"]])
def test_ports_and_prefixes_are_not_mixed(value: list[object]) -> None:
    with pytest.raises(PydanticCustomError, match="both prefixes and ports are in it"):
        parse_set(value)
