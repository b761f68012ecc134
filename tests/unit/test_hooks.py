# SPDX-License-Identifier: Apache-2.0
"""Which hook `auto` takes: a decision over facts."""

from __future__ import annotations

import pytest

from clearway.datapath.errors import DatapathError
from clearway.datapath.hooks import Choice, choose_hooks
from clearway.datapath.interfaces import InterfaceFacts

NICS = {
    "fast": InterfaceFacts("fast", 2, "ice", xdp_native=True, xdp_transmit=True),
    "virtio": InterfaceFacts("virtio", 3, "virtio_net", xdp_native=True, xdp_transmit=False),
    "old": InterfaceFacts("old", 4, "e1000", xdp_native=False, xdp_transmit=False),
    "unknown": InterfaceFacts("unknown", 5, "ixgbe", xdp_native=None, xdp_transmit=None),
    "veth": InterfaceFacts("veth", 6, "veth", xdp_native=True, xdp_transmit=False),
    "ready": InterfaceFacts("ready", 7, "veth", xdp_native=True, xdp_transmit=True),
    "bridge": InterfaceFacts("bridge", 8, "bridge", xdp_native=False, xdp_transmit=False),
    "bare": InterfaceFacts("bare", 9, "", xdp_native=False, xdp_transmit=False),
}


def chosen(asked: dict[str, str]) -> dict[str, str]:
    return {name: choice.hook for name, choice in choose_hooks(asked, facts_of(asked)).items()}


def facts_of(asked: dict[str, str]) -> dict[str, InterfaceFacts]:
    return {name: NICS[name] for name in asked}


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("fast", "xdp"),
        ("virtio", "xdp"),
        ("old", "tc"),
        ("unknown", "xdp"),
        ("veth", "tc"),
        ("bridge", "tc"),
        ("bare", "tc"),
    ],
)
def test_auto_takes_native_xdp_where_the_driver_has_it(name: str, hook: str) -> None:
    assert chosen({name: "auto"}) == {name: hook}


@pytest.mark.parametrize(
    ("others", "hook"),
    [
        ({"fast": "auto"}, "xdp"),
        ({"virtio": "auto"}, "xdp"),
        ({"virtio": "tc"}, "tc"),
        ({"virtio": "xdp"}, "xdp"),
        ({"fast": "tc"}, "xdp"),
        ({"veth": "auto"}, "tc"),
        ({"ready": "tc"}, "xdp"),
        ({"fast": "auto", "old": "auto"}, "tc"),
        ({"fast": "auto", "bridge": "tc"}, "tc"),
    ],
)
def test_auto_takes_xdp_only_if_the_others_can_send_what_it_redirects(
    others: dict[str, str], hook: str
) -> None:
    fast = InterfaceFacts("mine", 20, "mlx5_core", xdp_native=True, xdp_transmit=True)
    facts = {"mine": fast, **{name: NICS[name] for name in others}}
    choice = choose_hooks({"mine": "auto", **others}, facts)["mine"]
    assert choice.hook == hook
    assert choice.reason


def test_reason_names_the_interface_that_is_in_the_way() -> None:
    facts = {name: NICS[name] for name in ("fast", "bridge")}
    choice = choose_hooks({"fast": "auto", "bridge": "tc"}, facts)["fast"]
    assert choice.reason == "bridge (bridge) cannot send what XDP redirects to it"


@pytest.mark.parametrize("hook", ["xdp", "xdp-generic", "tc"])
def test_a_hook_asked_for_by_name_is_not_second_guessed(hook: str) -> None:
    assert choose_hooks({"old": hook}, {}) == {"old": Choice(hook)}


def test_only_what_auto_chose_may_fall_back() -> None:
    choices = choose_hooks({"fast": "auto", "virtio": "xdp"}, {n: NICS[n] for n in ("fast", "virtio")})
    assert (choices["fast"].tentative, choices["virtio"].tentative) == (True, False)


def test_unknown_hook_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(
        DatapathError, match="interface fast: hook 'fastest' does not exist, use one of auto, xdp"
    ):
        choose_hooks({"fast": "fastest"}, NICS)
