# SPDX-License-Identifier: Apache-2.0
"""Attaching: what the kernel lists is what was asked for, and moving or replacing lets no packet slip by."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clearway.datapath import Datapath, DatapathError, bpf
from clearway.datapath.attach import Attacher
from clearway.datapath.hooks import Choice
from clearway.datapath.others import Lookout
from clearway.datapath.pins import BPFFS, Pins
from clearway.lab.run import run
from tests.net.datapath.conftest import SIZES, Wire, bpftool

DEVICE = "cw-near"
XDP_MODES = {"xdp": 1, "xdp-generic": 2}  # IFLA_XDP_ATTACHED
HOOKS = ["xdp", "xdp-generic", "tc"]


@pytest.fixture(autouse=True)
def inside(wire: Wire) -> Iterator[None]:
    """The calling thread is in the near namespace, as the daemon of a node is."""
    with wire.near.entered():
        yield


def ids(datapath: Datapath) -> dict[str, int]:
    return {program.name: program.id for program in datapath.programs()}


def tc_program(instance: str, device: str = DEVICE) -> int:
    """The program of the pinned TCX link, as bpftool tells it; 0 without a link."""
    pin = BPFFS / instance / "links" / device / "tc"
    return int(bpftool("link", "show", "pinned", str(pin))["prog_id"]) if pin.exists() else 0


def links(datapath: Datapath) -> list[dict[str, Any]]:
    """All BPF links of the programs of `datapath`, pinned or not; others come and go beside these tests."""
    own = set(ids(datapath).values())
    return [link for link in bpftool("link", "show") if link.get("prog_id") in own]


@pytest.mark.parametrize("hook", HOOKS)
def test_kernel_lists_what_was_attached(datapath: Datapath, wire: Wire, hook: str) -> None:
    attachment = datapath.attach(DEVICE, hook)
    assert (attachment.hook, attachment.driver, attachment.stale) == (hook, "veth", False)
    assert attachment.ifindex == wire.link()["ifindex"]
    assert datapath.attachments() == [attachment]
    if hook == "tc":
        assert "xdp" not in wire.link()
        assert tc_program(datapath.instance) == ids(datapath)["cw_tc"]
    else:
        assert wire.link()["xdp"]["mode"] == XDP_MODES[hook]
        assert wire.link()["xdp"]["prog"]["id"] == ids(datapath)["cw_xdp"]
        assert tc_program(datapath.instance) == ids(datapath)["cw_tc_behind"]


@pytest.mark.parametrize("hook", HOOKS)
def test_detach_leaves_nothing(datapath: Datapath, wire: Wire, hook: str) -> None:
    datapath.attach(DEVICE, hook)
    assert len(links(datapath)) == (1 if hook == "tc" else 2)
    datapath.detach(DEVICE)
    assert datapath.attachments() == []
    assert "xdp" not in wire.link()
    assert links(datapath) == []
    assert list((BPFFS / datapath.instance / "links").iterdir()) == []
    datapath.detach(DEVICE)  # once more is no error


@pytest.mark.parametrize("hook", HOOKS)
def test_attaching_again_changes_nothing(datapath: Datapath, wire: Wire, hook: str) -> None:
    first = datapath.attach(DEVICE, hook)
    listed = links(datapath)
    assert datapath.attach(DEVICE, hook) == first
    assert links(datapath) == listed != []


def test_attachment_outlives_the_process(datapath: Datapath, wire: Wire) -> None:
    attachment = datapath.attach(DEVICE, "xdp")
    datapath.close()  # all that the end of a process does
    assert wire.link()["xdp"]["mode"] == XDP_MODES["xdp"]
    with Datapath.open(datapath.instance) as other:
        assert other.attachments() == [attachment]


def test_auto_takes_tc_on_veth_and_says_why(datapath: Datapath) -> None:
    attachment = datapath.attach(DEVICE)
    assert attachment.hook == "tc"
    assert attachment.reason.startswith("veth is a software device")
    assert datapath.attachments() == [attachment]


def test_auto_does_not_mind_interfaces_that_are_yet_to_come(datapath: Datapath) -> None:
    assert datapath.attach(DEVICE, "auto", {"cw-later": "auto"}).hook == "tc"


def test_interface_with_a_dot_in_its_name(datapath: Datapath, wire: Wire) -> None:
    wire.connect("cw-n.10", "cw-f.10", 2)
    datapath.attach("cw-n.10", "xdp")
    assert [a.ifname for a in datapath.attachments()] == ["cw-n.10"]
    assert wire.link("cw-n.10")["xdp"]["mode"] == XDP_MODES["xdp"]


# ---- no packet slips by ----


@contextmanager
def stream(datapath: Datapath, wire: Wire, *targets: str) -> Iterator[None]:
    """UDP packets from the far side throughout; afterwards the data path has seen as many, or more."""
    stop, sent = threading.Event(), [0]

    def send() -> None:
        with wire.far.open_socket(kind=socket.SOCK_DGRAM) as sender:
            while not stop.is_set():
                for target in targets or ("10.9.1.1",):
                    sender.sendto(b"x" * 64, (target, 9))
                    sent[0] += 1
                if sent[0] % 60 == 0:
                    time.sleep(0.001)

    before = datapath.counters().received.packets
    sender = threading.Thread(target=send)
    sender.start()
    try:
        time.sleep(0.05)
        yield
        time.sleep(0.05)
    finally:
        stop.set()
        sender.join()
    time.sleep(0.1)  # for packets still in the backlog
    assert sent[0] > 100
    assert datapath.counters().received.packets - before >= sent[0]


@pytest.mark.parametrize("start", HOOKS)
@pytest.mark.parametrize("end", HOOKS)
def test_moving_between_hooks_misses_no_packet(datapath: Datapath, wire: Wire, start: str, end: str) -> None:
    datapath.attach(DEVICE, start)
    with stream(datapath, wire):
        for hook in (end, start, end):
            assert datapath.attach(DEVICE, hook).hook == hook
    assert [a.hook for a in datapath.attachments()] == [end]
    assert wire.link().get("xdp", {}).get("mode") == XDP_MODES.get(end)


def test_replacing_the_programs_misses_no_packet(
    own_datapath: Datapath, instance: str, wire: Wire, changed_objects: Path
) -> None:
    for number, hook in enumerate(HOOKS, 2):
        wire.connect(f"cw-n{number}", f"cw-f{number}", number)
        own_datapath.attach(f"cw-n{number}", hook)
    before = ids(own_datapath)
    targets = [f"10.9.{number}.1" for number, _ in enumerate(HOOKS, 2)]
    with (
        stream(own_datapath, wire, *targets),
        Datapath.load(instance, SIZES, objects=changed_objects) as upgraded,
    ):
        after = ids(upgraded)
    assert not set(before.values()) & set(after.values())
    for number, hook in enumerate(HOOKS, 2):
        device = f"cw-n{number}"
        assert tc_program(instance, device) == after["cw_tc" if hook == "tc" else "cw_tc_behind"]
        if hook != "tc":
            assert wire.link(device)["xdp"]["prog"]["id"] == after["cw_xdp"]


def test_start_after_a_crash_in_mid_upgrade_moves_the_links(
    own_datapath: Datapath,
    instance: str,
    wire: Wire,
    changed_objects: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_datapath.attach(DEVICE, "xdp")

    class Killed(BaseException):
        pass

    def killed(_: Attacher) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Attacher, "replace_programs", killed)
        with pytest.raises(Killed):
            Datapath.load(instance, SIZES, objects=changed_objects)
    with Datapath.load(instance, SIZES, objects=changed_objects) as again:
        assert again.adopted
        assert wire.link()["xdp"]["prog"]["id"] == ids(again)["cw_xdp"]
        assert tc_program(instance) == ids(again)["cw_tc_behind"]
    assert len(Pins.of(instance).loads()) == 1


# ---- interfaces come and go ----


@pytest.mark.parametrize("hook", HOOKS)
def test_interface_that_vanished_is_stale_and_can_be_detached(
    datapath: Datapath, wire: Wire, hook: str
) -> None:
    datapath.attach(DEVICE, hook)
    wire.near.ip("link", "del", DEVICE)
    (attachment,) = datapath.attachments()
    assert (attachment.ifindex, attachment.stale, attachment.hook) == (0, True, hook)
    with pytest.raises(DatapathError, match=f"there is no interface {DEVICE} in this network namespace"):
        datapath.attach(DEVICE, hook)
    datapath.detach(DEVICE)
    assert datapath.attachments() == []


@pytest.mark.parametrize("hook", HOOKS)
def test_interface_that_came_back_is_stale_until_attached_again(
    datapath: Datapath, wire: Wire, hook: str
) -> None:
    datapath.attach(DEVICE, hook)
    wire.near.ip("link", "del", DEVICE)
    wire.connect(DEVICE, "cw-far", 1)
    (attachment,) = datapath.attachments()
    assert attachment.stale
    assert attachment.ifindex == wire.link()["ifindex"]
    attachment = datapath.attach(DEVICE, hook)
    assert not attachment.stale
    with stream(datapath, wire):
        pass


def test_renamed_interface_keeps_its_programs(datapath: Datapath, wire: Wire) -> None:
    datapath.attach(DEVICE, "xdp")
    wire.near.ip("link", "set", DEVICE, "down")
    wire.near.ip("link", "set", DEVICE, "name", "cw-other")
    program = wire.link("cw-other")["xdp"]["prog"]["id"]
    attachment = datapath.attach("cw-other", "xdp")
    assert not attachment.stale
    assert [a.ifname for a in datapath.attachments()] == ["cw-other"]
    assert wire.link("cw-other")["xdp"]["prog"]["id"] == program


def test_load_skips_stale_attachments(
    own_datapath: Datapath, instance: str, wire: Wire, objects: Path
) -> None:
    own_datapath.attach(DEVICE, "xdp")
    wire.near.ip("link", "del", DEVICE)
    Pins.of(instance).maps.joinpath("config_v4").unlink()  # makes it load anew
    with Datapath.load(instance, SIZES, objects=objects) as again:
        assert not again.adopted
        assert [a.stale for a in again.attachments()] == [True]


# ---- refusals ----


def test_missing_interface_is_refused_and_leaves_nothing(datapath: Datapath) -> None:
    with pytest.raises(DatapathError, match="there is no interface cw-absent in this network namespace"):
        datapath.attach("cw-absent", "tc")
    assert list((BPFFS / datapath.instance / "links").iterdir()) == []


def test_unknown_hook_is_refused(datapath: Datapath) -> None:
    with pytest.raises(DatapathError, match=f"interface {DEVICE}: hook 'best' does not exist"):
        datapath.attach(DEVICE, "best")


def test_driver_without_native_xdp_is_refused_with_what_to_do(datapath: Datapath) -> None:
    with pytest.raises(
        DatapathError, match=r"interface lo: driver none refuses native XDP .*use hook: auto, tc"
    ):
        datapath.attach("lo", "xdp")
    assert datapath.attachments() == []
    assert list((BPFFS / datapath.instance / "links").iterdir()) == []


@pytest.mark.parametrize("hook", ["xdp", "xdp-generic"])
def test_foreign_xdp_program_is_left_alone(
    datapath: Datapath, wire: Wire, objects: Path, lab_names: Iterator[str], hook: str
) -> None:
    pin = BPFFS / Pins.of(datapath.instance).instance / "progs" / "1" / "cw_xdp"
    run(
        [
            "nsenter",
            f"--net={wire.near.path}",
            "bpftool",
            "net",
            "attach",
            "xdp",
            "pinned",
            str(pin),
            "dev",
            DEVICE,
        ]
    )
    before = wire.link()["xdp"]
    with pytest.raises(DatapathError, match=f"interface {DEVICE}: another XDP program is attached"):
        datapath.attach(DEVICE, hook)
    assert wire.link()["xdp"] == before
    assert datapath.attachments() == []


def test_refused_xdp_leaves_tc_at_work(datapath: Datapath, wire: Wire) -> None:
    datapath.attach("lo", "tc")
    with pytest.raises(DatapathError):
        datapath.attach("lo", "xdp")
    (attachment,) = datapath.attachments()
    assert (attachment.ifname, attachment.hook, attachment.stale) == ("lo", "tc", False)


def test_auto_falls_back_to_tc_where_the_driver_refuses(datapath: Datapath) -> None:
    attacher = Attacher(Pins.of(datapath.instance), Pins.of(datapath.instance).progs / "1")
    attachment = attacher.attach("lo", Choice("xdp", "native XDP is tried", tentative=True))
    assert attachment.hook == "tc"
    assert (
        attachment.reason.startswith("driver  refused native XDP")
        or "refused native XDP" in attachment.reason
    )


# ---- clsact, for kernels before TCX; it works on newer ones as well ----


@pytest.fixture
def clsact(datapath: Datapath) -> Attacher:
    pins = Pins.of(datapath.instance)
    return Attacher(pins, pins.progs / "1", use_tcx=False)


@pytest.mark.parametrize("hook", HOOKS)
def test_clsact_filter_is_listed_and_removed_with_its_qdisc(
    clsact: Attacher, datapath: Datapath, wire: Wire, hook: str
) -> None:
    attachment = clsact.attach(DEVICE, Choice(hook))
    assert (attachment.hook, attachment.mechanism, attachment.stale) == (hook, "clsact", False)
    (listed,) = wire.filters()
    assert listed["options"]["direct-action"] is True
    assert listed["options"]["prog"]["id"] == ids(datapath)["cw_tc" if hook == "tc" else "cw_tc_behind"]
    assert clsact.attachments() == [attachment]
    clsact.detach(DEVICE)
    assert clsact.attachments() == []
    assert "clsact" not in wire.qdiscs()


def test_clsact_qdisc_of_others_stays(clsact: Attacher, wire: Wire) -> None:
    wire.near.run("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    clsact.attach(DEVICE, Choice("tc"))
    clsact.detach(DEVICE)
    assert "clsact" in wire.qdiscs()
    assert wire.filters() == []


def test_own_clsact_qdisc_stays_while_others_use_it(clsact: Attacher, wire: Wire, datapath: Datapath) -> None:
    clsact.attach(DEVICE, Choice("tc"))
    add_filter(wire, datapath, "egress", "pref", "5")
    clsact.detach(DEVICE)
    assert "clsact" in wire.qdiscs()
    assert "pref 5 bpf" in wire.near.run("tc", "filter", "show", "dev", DEVICE, "egress").stdout


def add_filter(wire: Wire, datapath: Datapath, direction: str, *place: str) -> None:
    """A filter of somebody else's."""
    pin = str(BPFFS / datapath.instance / "progs" / "1" / "cw_tc_known")
    program = ("bpf", "direct-action", "object-pinned", pin)
    wire.near.run("tc", "filter", "add", "dev", DEVICE, direction, *place, *program)


def test_clsact_place_of_another_program_is_left_alone(
    clsact: Attacher, wire: Wire, datapath: Datapath
) -> None:
    wire.near.run("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    add_filter(wire, datapath, "ingress", "pref", "10", "handle", "0xc1ea")
    before = wire.filters()
    with pytest.raises(
        DatapathError, match=f"interface {DEVICE}: tc filter pref 10 handle 0xc1ea runs another"
    ):
        clsact.attach(DEVICE, Choice("tc"))
    assert wire.filters() == before
    assert clsact.attachments() == []


@pytest.mark.parametrize("start", HOOKS)
@pytest.mark.parametrize("end", HOOKS)
def test_clsact_moves_between_hooks_without_missing_a_packet(
    clsact: Attacher, datapath: Datapath, wire: Wire, start: str, end: str
) -> None:
    clsact.attach(DEVICE, Choice(start))
    with stream(datapath, wire):
        for hook in (end, start, end):
            clsact.attach(DEVICE, Choice(hook))
    (listed,) = wire.filters()
    assert listed["options"]["prog"]["id"] == ids(datapath)["cw_tc" if end == "tc" else "cw_tc_behind"]


def test_clsact_interface_that_came_back_is_attached_again(
    clsact: Attacher, datapath: Datapath, wire: Wire
) -> None:
    clsact.attach(DEVICE, Choice("tc"))
    wire.near.ip("link", "del", DEVICE)
    wire.connect(DEVICE, "cw-far", 1)
    assert [a.stale for a in clsact.attachments()] == [True]
    assert not clsact.attach(DEVICE, Choice("tc")).stale
    with stream(datapath, wire):
        pass
    clsact.detach(DEVICE)
    assert "clsact" not in wire.qdiscs()


# ---- what this machine sends: at egress, beside any hook ----


@pytest.fixture(params=["tcx", "clsact"])
def attacher(request: pytest.FixtureRequest, datapath: Datapath) -> Attacher:
    pins = Pins.of(datapath.instance)
    return Attacher(pins, pins.progs / "1", use_tcx=request.param == "tcx")


def egress_program(datapath: Datapath, wire: Wire, device: str = DEVICE) -> int:
    """The program that runs at egress, by TCX or clsact; 0 if none."""
    pin = BPFFS / datapath.instance / "links" / device / "sent"
    if pin.exists():
        return int(bpftool("link", "show", "pinned", str(pin))["prog_id"])
    if "clsact" not in wire.qdiscs(device):
        return 0
    listed = [entry["options"]["prog"]["id"] for entry in wire.filters(device, "egress")]
    return int(listed[0]) if listed else 0


@pytest.mark.parametrize("hook", HOOKS)
def test_egress_program_comes_and_goes(attacher: Attacher, datapath: Datapath, wire: Wire, hook: str) -> None:
    without = attacher.attach(DEVICE, Choice(hook))
    assert not without.sent
    assert egress_program(datapath, wire) == 0
    attached = attacher.attach(DEVICE, Choice(hook), sent=True)
    assert (attached.hook, attached.sent, attached.stale) == (hook, True, False)
    assert attacher.attachments() == [attached]
    assert egress_program(datapath, wire) == ids(datapath)["cw_tc_out"]
    assert attacher.attach(DEVICE, Choice(hook), sent=True) == attached
    assert attacher.attach(DEVICE, Choice(hook)) == without
    assert egress_program(datapath, wire) == 0
    with stream(datapath, wire):
        pass


@pytest.mark.parametrize("hook", HOOKS)
def test_detach_takes_the_egress_program_along(
    attacher: Attacher, datapath: Datapath, wire: Wire, hook: str
) -> None:
    attacher.attach(DEVICE, Choice(hook), sent=True)
    assert egress_program(datapath, wire) == ids(datapath)["cw_tc_out"]
    attacher.detach(DEVICE)
    assert attacher.attachments() == []
    assert links(datapath) == []
    assert "clsact" not in wire.qdiscs()
    assert list((BPFFS / datapath.instance / "links").iterdir()) == []
    attacher.detach(DEVICE)  # once more is no error


@pytest.mark.parametrize("start", HOOKS)
@pytest.mark.parametrize("end", HOOKS)
def test_egress_program_stays_when_hooks_are_moved(
    attacher: Attacher, datapath: Datapath, wire: Wire, start: str, end: str
) -> None:
    attacher.attach(DEVICE, Choice(start), sent=True)
    for hook in (end, start, end):
        attached = attacher.attach(DEVICE, Choice(hook), sent=True)
        assert (attached.hook, attached.sent, attached.stale) == (hook, True, False)
        assert egress_program(datapath, wire) == ids(datapath)["cw_tc_out"]


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_egress_program_of_a_vanished_interface(
    attacher: Attacher, datapath: Datapath, wire: Wire, hook: str
) -> None:
    attacher.attach(DEVICE, Choice(hook), sent=True)
    wire.near.ip("link", "del", DEVICE)
    assert [(one.stale, one.sent) for one in attacher.attachments()] == [(True, True)]
    wire.connect(DEVICE, "cw-far", 1)
    assert [(one.stale, one.sent) for one in attacher.attachments()] == [(True, True)]
    attached = attacher.attach(DEVICE, Choice(hook), sent=True)
    assert (attached.stale, attached.sent) == (False, True)
    assert egress_program(datapath, wire) == ids(datapath)["cw_tc_out"]
    attacher.detach(DEVICE)
    assert attacher.attachments() == []
    assert "clsact" not in wire.qdiscs()


def test_egress_program_of_an_interface_that_came_back_without_a_firewall(
    attacher: Attacher, datapath: Datapath, wire: Wire
) -> None:
    attacher.attach(DEVICE, Choice("tc"), sent=True)
    wire.near.ip("link", "del", DEVICE)
    wire.connect(DEVICE, "cw-far", 1)
    attached = attacher.attach(DEVICE, Choice("tc"))
    assert (attached.stale, attached.sent) == (False, False)
    assert egress_program(datapath, wire) == 0
    assert attacher.attachments() == [attached]


def test_missing_egress_program_is_told(clsact: Attacher, datapath: Datapath, wire: Wire) -> None:
    """Somebody has removed the filter: what the machine sends passes by unseen until it is attached again."""
    clsact.attach(DEVICE, Choice("tc"), sent=True)
    wire.near.run("tc", "filter", "del", "dev", DEVICE, "egress")
    assert [(one.stale, one.sent) for one in clsact.attachments()] == [(True, True)]
    assert not clsact.attach(DEVICE, Choice("tc"), sent=True).stale
    assert egress_program(datapath, wire) == ids(datapath)["cw_tc_out"]


def test_clsact_egress_place_of_another_program_is_left_alone(
    clsact: Attacher, wire: Wire, datapath: Datapath
) -> None:
    wire.near.run("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    add_filter(wire, datapath, "egress", "pref", "10", "handle", "0xc1ea")
    before = wire.filters(side="egress")
    with pytest.raises(
        DatapathError, match=f"interface {DEVICE}: tc filter pref 10 handle 0xc1ea runs another"
    ):
        clsact.attach(DEVICE, Choice("tc"), sent=True)
    assert wire.filters(side="egress") == before
    clsact.detach(DEVICE)
    assert wire.filters() == []
    assert wire.filters(side="egress") == before


def test_own_qdisc_stays_while_others_use_its_egress(
    clsact: Attacher, wire: Wire, datapath: Datapath
) -> None:
    clsact.attach(DEVICE, Choice("tc"), sent=True)
    add_filter(wire, datapath, "egress", "pref", "5")
    clsact.attach(DEVICE, Choice("tc"))
    assert "pref 5 bpf" in wire.near.run("tc", "filter", "show", "dev", DEVICE, "egress").stdout
    assert "pref 10 bpf" not in wire.near.run("tc", "filter", "show", "dev", DEVICE, "egress").stdout
    clsact.detach(DEVICE)
    assert "clsact" in wire.qdiscs()


def test_renamed_interface_keeps_its_egress_program(
    attacher: Attacher, datapath: Datapath, wire: Wire
) -> None:
    attacher.attach(DEVICE, Choice("xdp"), sent=True)
    wire.near.ip("link", "set", DEVICE, "down")
    wire.near.ip("link", "set", DEVICE, "name", "cw-other")
    attached = attacher.attach("cw-other", Choice("xdp"), sent=True)
    assert (attached.stale, attached.sent) == (False, True)
    assert [one.ifname for one in attacher.attachments()] == ["cw-other"]
    assert egress_program(datapath, wire, "cw-other") == ids(datapath)["cw_tc_out"]


@pytest.mark.parametrize("mechanism", ["tcx", "clsact"])
@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_upgrade_replaces_the_egress_program(
    own_datapath: Datapath,
    instance: str,
    wire: Wire,
    changed_objects: Path,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: str,
    hook: str,
) -> None:
    if mechanism == "clsact":  # as on a kernel before TCX
        monkeypatch.setattr("clearway.datapath.attach._create_tcx", lambda *_: False)
    attacher = Attacher(Pins.of(instance), Pins.of(instance).progs / "1")
    assert attacher.attach(DEVICE, Choice(hook), sent=True).mechanism == mechanism
    before = ids(own_datapath)
    with Datapath.load(instance, SIZES, objects=changed_objects) as upgraded:
        after = ids(upgraded)
        assert [(one.sent, one.stale) for one in upgraded.attachments()] == [(True, False)]
        assert egress_program(upgraded, wire) == after["cw_tc_out"] != before["cw_tc_out"]
    assert len(wire.filters(side="egress") if mechanism == "clsact" else [1]) == 1


NEXT = struct.pack("<BBhi", 0xB7, 0, 0, -1) + struct.pack("<BBhi", 0x95, 0, 0, 0)
"""r0 = TCX_NEXT; exit"""


@pytest.mark.parametrize("point", [bpf.BPF_TCX_INGRESS, bpf.BPF_TCX_EGRESS])
def test_programs_of_others_are_told_from_ours(datapath: Datapath, point: int) -> None:
    ifindex = datapath.attach(DEVICE, "tc", sent=True).ifindex

    def found() -> dict[int, frozenset[int]]:
        others = Lookout().look([ifindex], datapath.tc_programs())
        sides = {bpf.BPF_TCX_INGRESS: others.ingress, bpf.BPF_TCX_EGRESS: others.egress}
        return {side: devices for side, devices in sides.items() if devices}

    assert found() == {}
    program = bpf.load_instructions(bpf.BPF_PROG_TYPE_SCHED_CLS, "other", NEXT)
    link = bpf.link_create(program, ifindex, point)
    assert found() == {point: frozenset({ifindex})}
    os.close(link)
    os.close(program)
    assert found() == {}
