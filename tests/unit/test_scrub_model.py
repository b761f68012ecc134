# SPDX-License-Identifier: Apache-2.0
"""What `scrub:` and files of lists may say, and how they are refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from clearway.compiler import Clock, HostFacts, blocked_by, compile_tables, plan_configs
from clearway.daemon.apply import apply_tables, read_tables, settle
from clearway.model import Config, ConfigError, ListContent, Prefixes, parse_config, read_list
from tests.unit.fake_tables import FakeDatapath

FACTS = HostFacts(32768, 60999, {"eth0": 2})
BOTH = (
    "{blocklists: [{name: a, prefixes: [192.0.2.0/24, '2001:db8::/32']}], allowlists: [{name: b, file: /b}]}"
)


def config(scrub: str) -> Config:
    return parse_config(f"interfaces: []\nscrub: {scrub}\n", "test.yaml")


def content(*prefixes: str) -> ListContent:
    return ListContent.of(Prefixes.of(map(ip_network, prefixes)))


@pytest.mark.parametrize(
    ("scrub", "said"),
    [
        ("{blocklists: [{name: a}]}", "neither file nor prefixes says what is listed"),
        ("{blocklists: [{name: a, file: /x, prefixes: []}]}", "file is set too"),
        ("{blocklists: [{name: a, file: bad.txt}]}", '"bad.txt" is not the path of a file'),
        ("{blocklists: [{name: a, file: 'https://x/y'}]}", '"https://x/y" is not on this machine'),
        ("{blocklists: [{name: a, prefixes: [80]}]}", "these are ports"),
        ("{blocklists: [{name: a, prefixes: [10.0.0.1/8]}]}", "has bits set after its first 8"),
        (
            "{blocklists: [{name: a, file: /x}], allowlists: [{name: a, file: /y}]}",
            "there is already a list a",
        ),
    ],
)
def test_what_is_wrong_is_refused(scrub: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")) as caught:
        config(scrub)
    assert "(line 2)" in str(caught.value)


def test_too_many_lists_are_refused() -> None:
    lists = ", ".join(f"{{name: l{number}, file: /x}}" for number in range(257))
    with pytest.raises(ConfigError, match="257 lists are too many"):
        config(f"{{blocklists: [{lists}]}}")


def test_file_may_be_a_url() -> None:
    scrub = config("{blocklists: [{name: a, file: 'file:///etc/bad%20one.txt'}]}").scrub
    assert scrub is not None and scrub.blocklists[0].file == "/etc/bad one.txt"


def test_plain_lists_are_read() -> None:
    text = b"\xef\xbb\xbf; a list\n192.0.2.1\n\n  198.51.100.0/24 ; SBL1\n2001:db8::/32 # why\r\n"
    found = read_list(text, "list")
    assert found == content("192.0.2.1/32", "198.51.100.0/24", "2001:db8::/32")
    assert (len(found.families[4]), len(found.families[6])) == (2, 1)


def test_lines_of_json_are_read() -> None:
    lines = [
        '{"cidr": "192.0.2.0/24", "sblid": "SBL1"}',
        '{"prefix": "198.51.100.1", "expires": "2027-01-31T12:00:00+01:00"}',
        '{"ip": "2001:db8::1", "expires": 1801393200.5}',
        '{"address": "2001:db8::2", "expires": null}',
        '{"type": "metadata", "records": 4}',
    ]
    found = read_list("\n".join(lines).encode(), "list")
    assert found.families[4].expires.tolist() == [0, 1801393200]
    assert found.families[6].expires.tolist() == [1801393201, 0]
    assert found != read_list("\n".join(lines[:1]).encode(), "list")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.0.2.1\nbad\n300.0.0.1", ["list (line 2): ", "list (line 3): "]),
        ("10.0.0.1/8", ["has bits set after its first 8; write 10.0.0.0/8"]),
        ("fe80::1%eth0", ["is not an IPv4 or IPv6 prefix"]),
        ('{"ip": "192.0.2.1"}\n[]', ["(line 2): is not a JSON object"]),
        ('{"host": "192.0.2.1"}', ["has none of the keys prefix, cidr, address, ip"]),
        ('{"ip": "192.0.2.1", "expires": "soon"}', ['"soon" is not a time']),
        ('{"ip": "192.0.2.1", "expires": true}', ["true is not a time"]),
        ('{"ip": 7}', ["7 is not an IPv4 or IPv6 prefix"]),
        ("{" * 100_000, ["is not a JSON object"]),
    ],
)
def test_line_that_is_wrong_is_told(text: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_list(text.encode(), "list")
    assert all(words in str(caught.value) for words in said)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"list \(line 2\): is not UTF-8 text"):
        read_list(b"192.0.2.1\n\xff\xfe", "list")


def test_plan_says_which_lists_come_and_change() -> None:
    before = config("{blocklists: [{name: a, prefixes: [192.0.2.0/24]}, {name: b, file: /b}]}")
    after = config("{blocklists: [{name: a, prefixes: [192.0.2.0/25]}], allowlists: [{name: c, file: /b}]}")
    lines = plan_configs(before, after, FACTS).human().splitlines()
    assert lines[:4] == [
        "- blocklist b",
        "~ blocklist a",
        "    ~ members: +192.0.2.0/25 -192.0.2.0/24",
        "+ allowlist c from /b",
    ]


def test_more_than_there_is_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearway.compiler.scrub.ENTRIES_MAX", 1)
    with pytest.raises(ConfigError, match=r"scrub.blocklists .*: 2 entries of IPv4 are more than the 1"):
        compile_tables(config("{blocklists: [{name: a, prefixes: [192.0.2.1, 192.0.2.2]}]}"), FACTS)


def test_lists_that_stay_are_not_laid_out_again_and_go_with_their_epoch() -> None:
    datapath = FakeDatapath()
    wanted = config(BOTH)
    facts = HostFacts(32768, 60999, {"eth0": 2}, lists={"/b": content("192.0.2.7/32")})
    first = compile_tables(wanted, facts)
    assert first.scrub is not None and first.scrub.bytes > 0
    apply_tables(datapath, read_tables(datapath), first, wait=lambda: None)
    held = dict(datapath.prefixes.content)
    assert len(held) == 3
    found = read_tables(datapath)
    assert found.scrub == first.scrub and found.scrub.images is None
    assert compile_tables(wanted, facts, found).scrub is found.scrub

    moved = parse_config(f"interfaces: []\nconntrack: {{midstream: drop}}\nscrub: {BOTH}\n", "test.yaml")
    second = compile_tables(moved, facts, found)
    apply_tables(datapath, found, second, wait=lambda: None)
    assert sorted(datapath.prefixes.content.values()) == sorted(held.values())
    assert not datapath.prefixes.content.keys() & held.keys()
    assert datapath.table("scrub_v1").lookup([0])[0]["on"].tolist() == [1]

    apply_tables(datapath, second, compile_tables(Config(), facts, second), wait=lambda: None)
    assert datapath.prefixes.content == {}
    assert datapath.table("scrub_v1").lookup([0])[0]["on"].tolist() == [0]
    settle(datapath, read_tables(datapath))
    assert read_tables(datapath).scrub is None


def test_counters_begin_anew_for_lists_that_are_new_alone() -> None:
    datapath = FakeDatapath()
    first = compile_tables(config("{blocklists: [{name: a, prefixes: [192.0.2.1]}]}"), FACTS)
    apply_tables(datapath, read_tables(datapath), first, wait=lambda: None)
    counted = datapath.table("listed_v1")
    keys, values = counted.items()
    full = values.copy()
    full["packets"] = 5
    counted.update(keys, full)
    both = config("{blocklists: [{name: b, prefixes: [192.0.2.1]}, {name: a, prefixes: [192.0.2.2]}]}")
    second = compile_tables(both, FACTS, first)
    assert first.scrub is not None and second.scrub is not None
    apply_tables(datapath, first, second, wait=lambda: None)
    [kept] = first.scrub.numbers.values()
    [new] = set(second.scrub.numbers.values()) - {kept}
    assert [counted.lookup([number])[0]["packets"][0] for number in (kept, new)] == [5, 0]


def test_who_is_blocked_is_told_as_the_data_path_finds_it() -> None:
    scrub = config(
        "{blocklists: [{name: a, file: /a}, {name: b, prefixes: [192.0.2.0/24, '2001:db8::/32']},"
        " {name: c, prefixes: [192.0.0.0/16]}], allowlists: [{name: d, file: /d}]}"
    )
    lists = {
        "/a": read_list(b'{"ip": "192.0.2.1", "expires": 2000}\n{"ip": "203.0.113.1", "expires": 2000}', "a"),
        "/d": read_list(b'{"ip": "192.0.2.7"}\n{"ip": "192.0.2.8", "expires": 2000}', "d"),
    }

    def found(address: str, seconds: float = 1000) -> str | None:
        return blocked_by(scrub, lists, ip_address(address), seconds)

    assert found("192.0.2.1") == "b", "it lives longer"
    assert (found("203.0.113.1"), found("203.0.113.1", 2000)) == ("a", None)
    assert (found("192.0.3.1"), found("2001:db8::1"), found("2001:db9::1")) == ("c", "b", None)
    assert found("192.0.2.7") is None
    assert (found("192.0.2.8"), found("192.0.2.8", 2001)) == (None, "b")
    assert blocked_by(Config(), lists, ip_address("192.0.2.1"), 1000) is None


def test_lists_are_laid_out_anew_when_the_clock_was_set_and_something_expires() -> None:
    wanted = config("{blocklists: [{name: a, file: /a}]}")

    def digest(text: bytes, seconds: float) -> bytes:
        facts = replace(FACTS, lists={"/a": read_list(text, "a")}, clock=Clock(0, seconds, 250))
        found = compile_tables(wanted, facts).scrub
        assert found is not None
        return found.digest

    ending, lasting = b'{"ip": "192.0.2.1", "expires": 9000000}', b"192.0.2.1"
    assert digest(ending, 6000.0) == digest(ending, 6001.0) != digest(ending, 9000.0)
    assert digest(lasting, 6000.0) == digest(lasting, 9000.0)
