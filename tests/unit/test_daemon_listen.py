# SPDX-License-Identifier: Apache-2.0
"""What the daemon does at once when the kernel announces something."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from clearway.daemon.listen import ROUTES_PAUSE, Announcements
from clearway.daemon.mirror import Mirror
from clearway.datapath import DatapathError


class FakeListener:
    """A socket that one can make announce something."""

    def __init__(self) -> None:
        self.here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.here.setblocking(False)

    def announce(self) -> None:
        self._there.send(b"!")

    def fileno(self) -> int:
        return self.here.fileno()

    def drain(self) -> bool:
        try:
            return bool(self.here.recv(10))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.here.close()
        self._there.close()


@dataclass
class FakeWatch:
    mirror: FakeListener = field(default_factory=FakeListener)
    routes: FakeListener = field(default_factory=FakeListener)
    nftables: FakeListener = field(default_factory=FakeListener)
    features: FakeListener = field(default_factory=FakeListener)

    def close(self) -> None:
        for listener in (self.mirror, self.routes, self.nftables, self.features):
            listener.close()


@dataclass
class FakeMirror:
    watch: FakeWatch = field(default_factory=FakeWatch)
    done: list[str] = field(default_factory=list)
    broken: bool = False

    def take_in(self) -> bool:
        self.watch.mirror.drain()
        if self.broken:
            raise DatapathError("table device_v1 is full")
        self.done.append("took in")
        return True

    def look_at_devices(self) -> None:
        self.done.append("looked at devices")

    def bump(self, sentences: list[str]) -> None:
        self.done.append(f"bumped: {sentences[0]}")


def react(announce: Callable[[FakeWatch], None], *, aware: bool, broken: bool = False) -> list[str]:
    """What happens when this is announced; `aware`: the data path sees nftables rules by itself."""
    mirror = FakeMirror(broken=broken)

    async def listen() -> None:
        announcements = Announcements(
            cast(Mirror, mirror),
            nft_generation=aware,
            links_changed=lambda: mirror.done.append("told of links"),
            routes_changed=lambda: mirror.done.append("told of routes"),
        )
        announcements.start()
        announce(mirror.watch)
        await asyncio.sleep(3 * ROUTES_PAUSE)
        announcements.stop()

    try:
        asyncio.run(listen())
    finally:
        mirror.watch.close()
    return mirror.done


def routes(number: int) -> Callable[[FakeWatch], None]:
    def announce(watch: FakeWatch) -> None:
        for _ in range(number):
            watch.routes.announce()

    return announce


@pytest.mark.parametrize("aware", [True, False])
def test_links_and_neighbours_are_taken_in_at_once(aware: bool) -> None:
    assert react(lambda watch: watch.mirror.announce(), aware=aware) == ["took in", "told of links"]


def test_features_of_devices_are_looked_at() -> None:
    assert react(lambda watch: watch.features.announce(), aware=True) == ["looked at devices"]


@pytest.mark.parametrize("aware", [True, False])
def test_routes_reach_flows_by_the_mirror(aware: bool) -> None:
    """Everywhere: no counter of the kernel says that an IPv6 route was deleted."""
    assert react(routes(1), aware=aware) == ["bumped: routes or rules have changed", "told of routes"]


def test_nftables_rules_reach_flows_by_the_mirror_where_the_data_path_does_not_see_them() -> None:
    assert react(lambda watch: watch.nftables.announce(), aware=True) == []
    assert react(lambda watch: watch.nftables.announce(), aware=False) == [
        "bumped: nftables rules have changed"
    ]


def test_thousands_of_routes_are_few_bumps_and_the_last_counts() -> None:
    done = react(routes(50), aware=False)
    assert done.count("told of routes") == 50
    assert done.count("bumped: routes or rules have changed") == 2


def test_what_cannot_be_written_does_not_end_the_daemon() -> None:
    def announce(watch: FakeWatch) -> None:
        watch.mirror.announce()
        watch.features.announce()

    assert react(announce, aware=True, broken=True) == ["looked at devices"]
