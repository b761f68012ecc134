# SPDX-License-Identifier: Apache-2.0
"""Acts on what the kernel announces, in the event loop, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from clearway.daemon.mirror import Mirror
from clearway.daemon.throttle import Throttle
from clearway.datapath import DatapathError
from clearway.linux.netlink import NetlinkError

log = structlog.get_logger()

ROUTES_PAUSE = 0.02  # seconds; a routing daemon may send thousands of routes in a row


class Announcements:
    """Reads the sockets of the mirror.

    `links_changed` and `routes_changed` are called after the mirror has become true again.
    `nft_generation`: the data path sees by itself that nftables rules have changed.
    """

    def __init__(
        self,
        mirror: Mirror,
        *,
        nft_generation: bool,
        links_changed: Callable[[], None],
        routes_changed: Callable[[], None],
    ) -> None:
        self._mirror = mirror
        self._watch = mirror.watch
        self._links_changed = links_changed
        self._routes_changed = routes_changed
        self._bump_for_rules = Throttle(self._bump, ROUTES_PAUSE)
        self._readers = {
            self._watch.mirror.fileno(): self._on_mirror,
            self._watch.features.fileno(): self._on_features,
            self._watch.routes.fileno(): self._on_routes,
        }
        if not nft_generation:
            self._readers[self._watch.nftables.fileno()] = self._on_nftables

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor, react in self._readers.items():
            loop.add_reader(descriptor, logged, react)

    def stop(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._readers:
            loop.remove_reader(descriptor)
        self._bump_for_rules.cancel()

    def _on_mirror(self) -> None:
        if self._mirror.take_in():
            self._links_changed()

    def _on_features(self) -> None:
        self._watch.features.drain()
        self._mirror.look_at_devices()

    def _on_routes(self) -> None:
        self._watch.routes.drain()
        # For kernels whose programs do not see these numbers change.
        self._bump_for_rules("routes or rules have changed")
        self._routes_changed()

    def _on_nftables(self) -> None:
        self._watch.nftables.drain()
        self._bump_for_rules("nftables rules have changed")

    def _bump(self, why: str) -> None:
        logged(lambda: self._mirror.bump([why]))


def logged(react: Callable[[], None]) -> None:
    """What cannot be written now must not end the daemon."""
    try:
        react()
    except (DatapathError, NetlinkError, OSError) as error:
        log.error("the data path could not be told of a change", why=str(error))
