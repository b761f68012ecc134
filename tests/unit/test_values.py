# SPDX-License-Identifier: Apache-2.0
"""Values of a configuration: what is taken, what it means, and what is said about what is refused."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from clearway.model.values import (
    DURATION_MAX_MS,
    DURATION_MIN_MS,
    AddressRange,
    PortRange,
    format_duration,
    is_prime,
    next_prime,
    parse_address,
    parse_duration,
    parse_interface_name,
    parse_maglev_size,
    parse_name,
    parse_pool,
    parse_port_range,
    parse_prefix,
    pool_text,
    previous_prime,
)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2h", 7_200_000),
        ("2h4m", 7_440_000),
        ("1h30m", 5_400_000),
        ("60s", 60_000),
        ("500ms", 500),
        ("1s500ms", 1500),
        ("1d", 86_400_000),
        (60, 60_000),
    ],
)
def test_duration_is_read(text: object, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "60", "1.5s", "-1s", "2 h", "2H", "h", "s5", True, None, 1.5, [], "1" * 5000 + "s", "2h\n"]
)
def test_duration_in_another_form_is_refused(text: object) -> None:
    with pytest.raises(PydanticCustomError, match="is not a duration; write for example 2h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["99ms", "0s", 0, "11d", "240h1ms", 10**30])
def test_duration_out_of_range_is_refused(text: object) -> None:
    with pytest.raises(PydanticCustomError, match="is out of range; use 100ms to 10d"):
        parse_duration(text)


@given(st.integers(DURATION_MIN_MS, DURATION_MAX_MS))
def test_duration_survives_being_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


def test_duration_is_written_short() -> None:
    assert [format_duration(ms) for ms in (7_440_000, 60_000, 500, 90_061_001)] == [
        "2h4m",
        "1m",
        "500ms",
        "1d1h1m1s1ms",
    ]


@pytest.mark.parametrize("text", ["203.0.113.10", "2001:db8::1", "10.0.0.0", "169.254.1.1", "fd00::1"])
def test_unicast_address_is_taken(text: str) -> None:
    assert parse_address(text) == ip_address(text)
    assert parse_address(ip_address(text)) == ip_address(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("fe80::1", "a link-local address"),
        ("::ffff:10.0.0.1", "an IPv4 address written as IPv6"),
        (IPv4Address("127.0.0.1"), "a loopback address"),
        (IPv6Address("ff02::1"), "a multicast address"),
    ],
)
def test_address_that_no_flow_can_have_is_refused(text: object, why: str) -> None:
    with pytest.raises(PydanticCustomError, match=f"is {why}; give a unicast address"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.300",
        "10.0.0.1/32",
        "fe80::1%eth0",
        "web.example.org",
        10,
        None,
        True,
        "10.0.0.1 ",
    ],
)
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(
        PydanticCustomError, match=r"is not an IPv4 or IPv6 address; write for example 10.0.0.2"
    ):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("fd00::1", "fd00::1/128"),
    ],
)
def test_prefix_is_taken(text: str, network: str) -> None:
    assert parse_prefix(text) == ip_network(network)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", '"10.0.0.1/8" has bits set after its first 8; write 10.0.0.0/8'),
        ("2001:db8::1/64", '"2001:db8::1/64" has bits set after its first 64; write 2001:db8::/64'),
        ("127.0.0.0/24", "127.0.0.0/24 is a loopback address; give a prefix that packets can come from"),
        ("ff00::/8", "ff00::/8 is a multicast address; give a prefix that packets can come from"),
        ("10.0.0.0/33", "is not an IPv4 or IPv6 prefix"),
        ("10.0.0.0/255.0.0.0", "is not an IPv4 or IPv6 prefix"),
        ("10.0.0.0/", "is not an IPv4 or IPv6 prefix"),
        ("fe80::%eth0/64", "is not an IPv4 or IPv6 prefix"),
        (8, "8 is not an IPv4 or IPv6 prefix"),
    ],
)
def test_prefix_is_refused(text: object, message: str) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        parse_prefix(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "first", "count", "written"),
    [
        ("198.51.100.8/29", "198.51.100.8", 8, "198.51.100.8/29"),
        ("198.51.100.8-198.51.100.15", "198.51.100.8", 8, "198.51.100.8/29"),
        ("198.51.100.8 - 198.51.100.10", "198.51.100.8", 3, "198.51.100.8-198.51.100.10"),
        ("198.51.100.8", "198.51.100.8", 1, "198.51.100.8"),
        ("198.51.100.8/32", "198.51.100.8", 1, "198.51.100.8"),
        ("10.0.0.0/16", "10.0.0.0", 65536, "10.0.0.0/16"),
        ("2001:db8::/112", "2001:db8::", 65536, "2001:db8::/112"),
    ],
)
def test_pool_is_read_and_written(text: str, first: str, count: int, written: str) -> None:
    pool = parse_pool(text)
    assert pool == AddressRange(ip_address(first), count)
    assert pool_text(pool) == written
    assert parse_pool(written) == pool


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("198.51.100.15-198.51.100.8", "is reversed; write 198.51.100.8-198.51.100.15"),
        ("10.0.0.0/15", "has 131072 addresses; use at most 65536"),
        ("2001:db8::/64", "has 18446744073709551616 addresses; use at most 65536"),
        ("198.51.100.8-2001:db8::1", "mixes IPv4 and IPv6; use one family in a pool"),
        ("198.51.100.9/29", "has bits set after its first 29; write 198.51.100.8/29"),
        ("223.255.255.254-224.0.0.1", "holds a multicast address; give unicast addresses"),
        ("127.0.0.1", "holds a loopback address"),
        ("2001:db8::ffff:fff0-2001:db8::1:0:10", "crosses a /96; split it at the /96"),
        ("198.51.100.8-", "is not a pool of addresses"),
        ("", "is not a pool of addresses"),
        (True, "true is not a pool of addresses"),
    ],
)
def test_pool_is_refused(text: object, message: str) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        parse_pool(text)
    assert message in str(refused.value)


def test_port_range_is_read() -> None:
    assert parse_port_range("1024-32767") == PortRange(1024, 32767)
    assert str(parse_port_range(" 1 - 65535 ")) == "1-65535"
    assert len(PortRange(5000, 5000)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2000-1000", 'is reversed; write "1000-2000"'),
        ("0-1000", "leaves the ports 1-65535"),
        ("1-65536", "leaves the ports 1-65535"),
        ("1024", "is not a range of ports"),
        (1024, "1024 is not a range of ports"),
        ("a-b", "is not a range of ports"),
        ("-5-10", "is not a range of ports"),
    ],
)
def test_port_range_is_refused(text: object, message: str) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        parse_port_range(text)
    assert message in str(refused.value)


def test_port_ranges_overlap_when_they_share_a_port() -> None:
    assert PortRange(1, 10).overlaps(PortRange(10, 20))
    assert PortRange(5, 6).overlaps(PortRange(1, 20))
    assert not PortRange(1, 10).overlaps(PortRange(11, 20))


@pytest.mark.parametrize("name", ["web", "web-1", "a.b_c", "0", "x" * 63])
def test_name_is_taken(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("parse", [parse_name, parse_interface_name])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (12, '12 without quotes is a number, not a name; write it in quotes ("12")'),
        (1.5, "1.5 without quotes is a number, not a name; write it in quotes"),
        (True, 'true without quotes is true or false, not a name; write it in quotes ("true")'),
    ],
)
def test_name_without_its_quotes_is_refused(
    parse: Callable[[object], str], name: object, message: str
) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        parse(name)
    assert refused.value.message() == message


@pytest.mark.parametrize("name", ["", "-web", "a b", "a/b", "x" * 64, "wéb", None, "web\n"])
def test_name_is_refused(name: object) -> None:
    with pytest.raises(PydanticCustomError, match="cannot be a name; use up to 63"):
        parse_name(name)


@pytest.mark.parametrize("name", ["eth0", "eth0.100", "x" * 15, "br-öst"])
def test_interface_name_is_taken(name: str) -> None:
    assert parse_interface_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "x" * 16, "öööööööö", "eth0:1", 0, None, "a\x00"]
)
def test_interface_name_that_the_kernel_would_not_give_is_refused(name: object) -> None:
    with pytest.raises(PydanticCustomError):
        parse_interface_name(name)


def test_primes() -> None:
    assert [n for n in range(30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    assert (next_prime(65536), previous_prime(65536)) == (65537, 65521)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (65536, "65536 is not a prime number; use 65537 or 65521"),
        (1_048_577, "is out of range; use a prime from 2 to 1048573"),
        (1, "is out of range"),
        pytest.param(10**5000, "a huge number is out of range", id="huge"),
        ("65537", "is not a whole number"),
        (True, "true is not a whole number"),
    ],
)
def test_maglev_size_is_refused(value: object, message: str) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        parse_maglev_size(value)
    assert message in str(refused.value)
