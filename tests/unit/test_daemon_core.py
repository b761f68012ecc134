# SPDX-License-Identifier: Apache-2.0
"""What the daemon decides, from one snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clearway.daemon.core import (
    COMPILE,
    KEEP_EVERY,
    KEEP_PAUSE,
    Apply,
    Attach,
    Attached,
    Basis,
    Detach,
    Failure,
    KeepNeighbours,
    Snapshot,
    Step,
    basis,
    decide,
    named_interfaces,
    waiting,
    without,
)
from clearway.model import Config, config_from_data

NOW = 1000.0
PORTS = (32768, 60999)
PRESENT = {"lo": 1, "eth0": 2, "eth1": 3}


def configured(*interfaces: tuple[str, str], nat: str | None = None) -> Config:
    rules = [{"name": "out", "source": "10.0.0.0/8", "interface": nat, "masquerade": True}] if nat else []
    return config_from_data(
        {"interfaces": [{"name": name, "hook": hook} for name, hook in interfaces], "nat": rules}
    )


def settled(config: Config, attached: dict[str, Attached], present: dict[str, int] | None = None) -> Snapshot:
    """Nothing to compile, no neighbours to look after."""
    here = PRESENT if present is None else present
    return Snapshot(
        now=NOW,
        config=config,
        present=here,
        attached=attached,
        local_ports=PORTS,
        compiled_for=basis(config, here, PORTS),
        kept_at=NOW,
    )


def steps(snapshot: Snapshot) -> list[Step]:
    return list(decide(snapshot).steps)


XDP = configured(("eth0", "xdp"))
ATTACHED = {"eth0": Attached(2, "xdp")}


def test_settled_node_has_nothing_to_do() -> None:
    decision = decide(settled(XDP, ATTACHED))
    assert decision.steps == ()
    assert decision.look_again_at == NOW + KEEP_EVERY


def test_start_compiles_before_it_attaches() -> None:
    snapshot = replace(settled(XDP, {}), compiled_for=None, kept_at=None)
    assert [type(step) for step in steps(snapshot)] == [Apply, Attach, KeepNeighbours]


# ---- interfaces ----


@pytest.mark.parametrize(
    ("attached", "why"),
    [
        ({}, "it is there and carries no program"),
        ({"eth0": Attached(9, "xdp")}, "it was made anew"),
        ({"eth0": Attached(2, "xdp", stale=True)}, "it was made anew"),
        ({"eth0": Attached(2, None)}, "an earlier daemon attached it"),
        ({"eth0": Attached(2, "tc")}, "its hook was tc and is now xdp"),
    ],
)
def test_interface_is_attached_when_it_is_not_as_wanted(attached: dict[str, Attached], why: str) -> None:
    assert steps(settled(XDP, attached)) == [Attach("eth0", "xdp", frozenset(), False, why)]


def test_automatic_hook_is_chosen_anew_when_the_interfaces_beside_it_change() -> None:
    both = frozenset({("eth0", "auto"), ("eth1", "xdp")})
    config = configured(("eth0", "auto"), ("eth1", "xdp"))
    attached = {"eth0": Attached(2, "auto", frozenset({("eth0", "auto")})), "eth1": Attached(3, "xdp")}
    assert steps(settled(config, attached)) == [
        Attach("eth0", "auto", both, False, "the interfaces beside it have changed")
    ]
    attached["eth0"] = Attached(2, "auto", both)
    assert steps(settled(config, attached)) == []


def test_interface_that_is_not_configured_any_more_is_detached() -> None:
    snapshot = settled(configured(), ATTACHED)
    assert steps(snapshot) == [Detach("eth0", "it is not configured any more")]


def test_interface_that_is_gone_is_detached_and_waited_for() -> None:
    snapshot = settled(XDP, ATTACHED, {"lo": 1})
    assert steps(snapshot) == [Detach("eth0", "it is gone")]
    assert steps(replace(snapshot, attached={})) == []


def test_renamed_interface_is_followed_before_its_old_name_is_given_up() -> None:
    snapshot = settled(XDP, {"old0": Attached(2, "xdp")})
    assert [type(step) for step in steps(snapshot)] == [Attach, Detach]


def test_failure_is_tried_again_later_and_later() -> None:
    failure = Failure.of("no", NOW)
    delays = [failure.retry_at - NOW]
    for _ in range(6):
        failure = Failure.of("no", NOW, failure)
        delays.append(failure.retry_at - NOW)
    assert delays == [1, 2, 5, 10, 30, 30, 30]


def test_failed_interface_waits_for_its_turn() -> None:
    failed = replace(settled(XDP, {}), failures={"eth0": Failure("refused", 1, NOW + 1)})
    assert steps(failed) == []
    assert decide(failed).look_again_at == NOW + 1
    assert [type(step) for step in steps(replace(failed, now=NOW + 1))] == [Attach]


def test_failure_of_one_interface_does_not_hold_up_the_others() -> None:
    config = configured(("eth0", "xdp"), ("eth1", "xdp"))
    failed = replace(settled(config, {}), failures={"eth0": Failure("refused", 1, NOW + 1)})
    assert [step.interface for step in steps(failed) if isinstance(step, Attach)] == ["eth1"]


# ---- tables ----

NAT = configured(nat="eth1")


def test_tables_are_compiled_anew_when_a_nat_interface_is_made_anew() -> None:
    snapshot = replace(settled(NAT, {}), present={**PRESENT, "eth1": 7})
    expected = "eth1: an interface that a rule names came, went or was made anew"
    assert steps(snapshot) == [Apply(Basis(PORTS, (("eth1", 7),)), expected)]


def test_tables_do_not_care_about_other_interfaces() -> None:
    assert steps(replace(settled(NAT, {}), present={**PRESENT, "eth5": 7})) == []


def test_tables_are_compiled_anew_when_the_hosts_own_ports_change() -> None:
    snapshot = replace(settled(NAT, {}), local_ports=(40000, 50000))
    assert [(type(step), step.why) for step in steps(snapshot)] == [
        (Apply, "the host's own ports are now 40000-50000")
    ]


def test_refused_compilation_is_tried_again_later() -> None:
    failed = replace(settled(NAT, {}), compiled_for=None, failures={COMPILE: Failure("refused", 1, NOW + 1)})
    assert steps(failed) == []
    assert [type(step) for step in steps(replace(failed, now=NOW + 2))] == [Apply]


# ---- neighbours ----


def test_neighbours_are_looked_after_now_and_then() -> None:
    snapshot = settled(XDP, ATTACHED)
    assert steps(replace(snapshot, now=NOW + KEEP_EVERY - 0.1)) == []
    assert steps(replace(snapshot, now=NOW + KEEP_EVERY)) == [KeepNeighbours("it is time again")]


def test_neighbours_follow_routes_but_not_each_of_thousands() -> None:
    snapshot = replace(settled(XDP, ATTACHED), routes_changed=True)
    assert steps(snapshot) == []
    assert decide(snapshot).look_again_at == NOW + KEEP_PAUSE
    assert steps(replace(snapshot, now=NOW + KEEP_PAUSE)) == [KeepNeighbours("routes have changed")]


# ---- what waits for an interface ----


def test_what_waits_is_left_out_and_named() -> None:
    config = configured(("eth0", "tc"), ("wan", "tc"), nat="wan")
    assert waiting(config, PRESENT) == ("interface wan is not there", "nat out waits for interface wan")
    assert without(config, {"wan"}) == configured(("eth0", "tc"))
    assert named_interfaces(config) == {"eth0", "wan"}
    assert waiting(without(config, {"wan"}), PRESENT) == ()
