# SPDX-License-Identifier: Apache-2.0
"""Which announcements of the kernel make stored decisions doubtful, and which do not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from clearway.linux.neighbours import OUR_PROTOCOL, Work, plan
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import NUD_PERMANENT, Address, Hop, Link, Neighbour

NUD_INCOMPLETE, NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_FAILED = 1, 2, 4, 8, 16, 32
MAC, OTHER = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
IP = ip_address("10.0.0.2")
HOP = Hop(2, IP)
ETH = Link(2, "eth0", True, True, True, MAC, 1500)


def neighbour(
    mac: bytes | None = MAC, state: int = NUD_REACHABLE, *, managed: bool = False, protocol: int = 0
) -> Neighbour:
    return Neighbour(2, IP, mac, state, managed, protocol)


# ---- neighbours ----


def test_neighbour_that_was_never_heard_of_is_silent() -> None:
    picture = Picture()
    assert picture.note_neighbour(neighbour()) is None
    assert picture.neighbours == {HOP: MAC}


def test_states_that_come_and_go_by_themselves_are_silent() -> None:
    picture = Picture()
    picture.note_neighbour(neighbour())
    for state in (NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_REACHABLE):
        assert picture.note_neighbour(neighbour(state=state)) is None


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (neighbour(OTHER), "neighbour 10.0.0.2 is at 02:00:00:00:00:02"),
        (neighbour(None, NUD_FAILED), "neighbour 10.0.0.2 does not answer"),
    ],
)
def test_other_or_no_link_address_counts(then: Neighbour, sentence: str) -> None:
    picture = Picture()
    picture.note_neighbour(neighbour())
    assert picture.note_neighbour(then) == sentence
    assert picture.note_neighbour(then) is None


def test_neighbour_that_answers_again_counts() -> None:
    picture = Picture()
    picture.note_neighbour(neighbour(None, NUD_FAILED))
    assert picture.note_neighbour(neighbour()) == "neighbour 10.0.0.2 is at 02:00:00:00:00:01"


def test_neighbour_that_never_answered_is_silent_to_its_end() -> None:
    picture = Picture()
    assert picture.note_neighbour(neighbour(None, NUD_INCOMPLETE)) is None
    assert picture.note_neighbour(neighbour(None, NUD_FAILED)) is None
    assert picture.note_neighbour(neighbour(None, NUD_FAILED), gone=True) is None


def test_neighbour_that_goes_counts_once() -> None:
    picture = Picture()
    picture.note_neighbour(neighbour())
    assert picture.note_neighbour(neighbour(), gone=True) == "neighbour 10.0.0.2 is gone"
    assert picture.note_neighbour(neighbour(), gone=True) is None


# ---- links and addresses ----


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (replace(ETH, up=False), "eth0 is down"),
        (replace(ETH, carrier=False), "eth0 is down"),
        (replace(ETH, mac=OTHER), "eth0 has link address 02:00:00:00:00:02"),
        (replace(ETH, name="wan"), "wan was eth0"),
        (replace(ETH, mtu=9000), "eth0 changed"),
    ],
)
def test_link_that_changes_counts_once(then: Link, sentence: str) -> None:
    picture = Picture()
    assert picture.note_link(ETH) == "eth0 is new (ifindex 2)"
    assert picture.note_link(then) == sentence
    assert picture.note_link(then) is None


def test_link_that_goes_takes_its_addresses_and_neighbours_along() -> None:
    picture = Picture()
    picture.note_link(ETH)
    picture.note_address(Address(2, IP, 0, 0, 0))
    picture.note_neighbour(neighbour())
    assert picture.note_link(ETH, gone=True) == "eth0 is gone"
    assert (picture.links, picture.addresses, picture.neighbours) == ({}, {}, {})
    assert picture.note_link(ETH, gone=True) is None


def test_address_counts_when_it_comes_changes_or_goes() -> None:
    picture = Picture()
    found = Address(2, IP, 0, 0x40, 1)
    assert picture.note_address(found) == "10.0.0.2 is new"
    assert picture.note_address(replace(found, created=2)) is None
    assert picture.note_address(replace(found, flags=0x80)) == "10.0.0.2 is different"
    assert picture.note_address(found, gone=True) == "10.0.0.2 is gone"
    assert picture.note_address(found, gone=True) is None


def test_full_listing_replaces_everything() -> None:
    picture = Picture()
    picture.note_link(replace(ETH, ifindex=9, name="old"))
    picture.replace([ETH], [Address(2, IP, 0, 0, 0)], [neighbour()])
    assert picture.ifindexes() == {"eth0": 2}
    assert list(picture.addresses) == [(2, IP)]
    assert picture.neighbours == {HOP: MAC}


# ---- neighbours that are to be kept resolved ----

NOTHING = Work(frozenset(), frozenset())


def test_unknown_next_hop_is_given_to_the_kernels_care() -> None:
    assert plan({HOP}, [], {2: ETH}) == Work(frozenset({HOP}), frozenset())


def test_learned_next_hop_is_given_to_the_kernels_care() -> None:
    assert plan({HOP}, [neighbour()], {2: ETH}) == Work(frozenset({HOP}), frozenset())


@pytest.mark.parametrize(
    ("entry", "link"),
    [
        (neighbour(managed=True, protocol=OUR_PROTOCOL), ETH),
        (neighbour(managed=True), ETH),
        (neighbour(state=NUD_PERMANENT), ETH),
        (neighbour(None, 0), replace(ETH, resolves=False)),
        (neighbour(None, 0), replace(ETH, up=False)),
    ],
    ids=["ours", "somebody else's", "permanent", "device resolves nothing", "device is down"],
)
def test_next_hop_that_needs_no_care_is_left_alone(entry: Neighbour, link: Link) -> None:
    assert plan({HOP}, [entry], {2: link}) == NOTHING


def test_only_what_we_asked_for_is_released() -> None:
    ours = neighbour(managed=True, protocol=OUR_PROTOCOL)
    assert plan(set(), [ours], {2: ETH}) == Work(frozenset(), frozenset({HOP}))
    assert plan(set(), [neighbour(managed=True)], {2: ETH}) == NOTHING
    assert plan(set(), [neighbour(protocol=OUR_PROTOCOL)], {2: ETH}) == NOTHING
