# SPDX-License-Identifier: Apache-2.0
"""Programs on interfaces: attached, moved between hooks, replaced and detached without a packet slipping by.

With an XDP hook the interface also runs `cw_tc_behind`, which finishes what XDP hands over; with `tc` it runs
`cw_tc` alone. What is in force is read back from the pinned links, so any daemon can go on where another
stopped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from clearway.datapath import bpf, clsact
from clearway.datapath.errors import DatapathError, reason
from clearway.datapath.hooks import Choice, choose_hooks
from clearway.datapath.interfaces import InterfaceFacts, driver, interface_facts, interface_index
from clearway.datapath.pins import Pins, remove_tree

__all__ = ["Attacher", "Attachment", "Choice", "InterfaceFacts", "choose_hooks", "interface_facts"]

XDP_FLAGS = {"xdp": bpf.XDP_FLAGS_DRV_MODE, "xdp-generic": bpf.XDP_FLAGS_SKB_MODE}
XDP_PROGRAM = "cw_xdp"
TC_ALONE = "cw_tc"
TC_BEHIND = "cw_tc_behind"
TC_OUT = "cw_tc_out"


@dataclass(frozen=True)
class Side:
    """Where TC programs run, and by what name it is known that there is one: a link's pin, or the mark of a
    filter.
    """

    link: str
    mark: str
    tcx: int
    clsact: int


INGRESS = Side("tc", "clsact", bpf.BPF_TCX_INGRESS, clsact.BPF_TC_INGRESS)
EGRESS = Side("sent", "clsact-sent", bpf.BPF_TCX_EGRESS, clsact.BPF_TC_EGRESS)


@dataclass(frozen=True)
class Attachment:
    """What is attached to an interface.

    ifindex: 0 if there is no such interface now. hook: xdp | xdp-generic | tc. mechanism: how the TC
    program runs, "tcx" or "clsact". stale: the interface went away or came back anew, so that packets pass
    by: attach again, or detach. reason: why `auto` chose this hook. sent: what
    this machine sends is looked at, too.
    """

    ifname: str
    ifindex: int
    hook: str
    mechanism: str
    driver: str
    stale: bool
    reason: str = ""
    sent: bool = False


class Attacher:
    """Attaches the programs pinned in one load. `use_tcx`: False to use clsact where the kernel has TCX,
    too.
    """

    def __init__(self, pins: Pins, programs: Path, use_tcx: bool = True) -> None:
        self._pins = pins
        self._programs = programs
        self._use_tcx = use_tcx

    # ---- what is in force ----

    def attachments(self) -> list[Attachment]:
        return [self._read(ifname) for ifname in self._pins.interfaces()]

    def _read(self, ifname: str) -> Attachment:
        directory = self._pins.interface(ifname)
        ifindex = _index_or_zero(ifname)
        hook = _xdp_hook(directory) or "tc"
        parts = [_link_ifindex(directory / hook)] if hook != "tc" else []
        mechanism = "clsact" if (directory / INGRESS.mark).is_dir() else "tcx"
        sent = _has(directory, EGRESS)
        parts += [self._ifindex_of(directory, ifindex, side) for side in (INGRESS, *[EGRESS] * sent)]
        stale = not ifindex or any(part != ifindex for part in parts)
        return Attachment(
            ifname, ifindex, hook, mechanism, driver(ifname) if ifindex else "", stale, sent=sent
        )

    def _ifindex_of(self, directory: Path, ifindex: int, side: Side) -> int:
        """The interface that our TC program of that side is on; 0 if there is none."""
        if not (directory / side.mark).is_dir():
            return _link_ifindex(directory / side.link)
        runs = bool(ifindex) and clsact.program_id(ifindex, side.clsact) in self.program_ids()
        return ifindex if runs else 0

    def program_ids(self) -> set[int]:
        """Ids of every TC entry program of this instance, those of older loads included."""
        found = set()
        for load in self._pins.loads():
            for name in (TC_ALONE, TC_BEHIND, TC_OUT):
                if (load.directory / name).exists():
                    with bpf.pinned(load.directory / name) as fd:
                        found.add(bpf.program_info(fd).id)
        return found

    # ---- attach ----

    def attach(self, ifname: str, choice: Choice, sent: bool = False) -> Attachment:
        """Brings an interface to a hook from whatever state it is in; does nothing if it is there. sent: what
        this machine sends by it is to be looked at, too.

        DatapathError if the interface does not exist, its driver refuses or another program is in the way. An
        interface that was attached goes on then, as before or with TC.
        """
        ifindex = interface_index(ifname)
        self._follow_rename(ifname, ifindex)
        self._drop_stale(ifname, ifindex)
        self._pins.interface(ifname).mkdir(exist_ok=True, mode=0o700)
        try:
            reason_given = self._bring_to(ifname, ifindex, choice)
            self._set_sent(ifname, ifindex, sent)
        except OSError as error:
            raise DatapathError(f"interface {ifname} cannot be attached: {reason(error)}") from error
        finally:
            if not any(self._pins.interface(ifname).iterdir()):
                self._pins.interface(ifname).rmdir()
        now = self._read(ifname)
        return replace(now, ifindex=ifindex, reason=reason_given)

    def _bring_to(self, ifname: str, ifindex: int, choice: Choice) -> str:
        """Returns the reason for the hook that was taken in the end."""
        present = _xdp_hook(self._pins.interface(ifname))
        if choice.hook == "tc":
            self._to_tc(ifname, ifindex)
            return choice.reason
        if present == choice.hook:
            self._set_tc(ifname, ifindex, TC_BEHIND)
            return choice.reason
        if present is not None:  # an interface runs XDP in one mode only: over TC, so that no packet slips by
            self._to_tc(ifname, ifindex)
        try:
            self._to_xdp(ifname, ifindex, choice.hook)
        except OSError as error:
            if not choice.tentative:
                raise _refusal(ifname, choice.hook, error) from None
            self._to_tc(ifname, ifindex)
            return f"driver {driver(ifname) or 'none'} refused native XDP: {reason(error)}"
        return choice.reason

    def _to_tc(self, ifname: str, ifindex: int) -> None:
        """TC takes everything first, then XDP goes."""
        self._set_tc(ifname, ifindex, TC_ALONE)
        directory = self._pins.interface(ifname)
        hook = _xdp_hook(directory)
        if hook is not None:
            _remove_link(directory / hook)

    def _to_xdp(self, ifname: str, ifindex: int, hook: str) -> None:
        """Adds XDP to an interface without it. An interface that had nothing gets the TC program first, for
        what XDP hands over; one on TC keeps handling everything there until XDP runs. OSError if XDP is
        refused.
        """
        directory = self._pins.interface(ifname)
        with ExitStack() as undo:
            if not _has(directory, INGRESS):
                undo.callback(self._remove_parts, ifname)
                self._set_tc(ifname, ifindex, TC_BEHIND)
            with bpf.pinned(self._programs / XDP_PROGRAM) as program:
                link = bpf.link_create(program, ifindex, bpf.BPF_XDP, XDP_FLAGS[hook])
            undo.callback(os.close, link)
            bpf.obj_pin(link, directory / hook)
            undo.pop_all()
            os.close(link)
        self._set_tc(ifname, ifindex, TC_BEHIND)

    def _set_tc(self, ifname: str, ifindex: int, name: str, side: Side = INGRESS) -> None:
        """Makes `name` the TC program of an interface, in one step if it had another one."""
        directory = self._pins.interface(ifname)
        with bpf.pinned(self._programs / name) as program:
            if (directory / side.link).exists():
                with bpf.pinned(directory / side.link) as link:
                    if bpf.link_info(link).prog_id != bpf.program_info(program).id:
                        bpf.link_update(link, program)
            elif not self._use_tcx or not _create_tcx(program, ifindex, directory / side.link, side.tcx):
                self._set_clsact(ifname, ifindex, program, side)

    def _set_clsact(self, ifname: str, ifindex: int, program: int, side: Side) -> None:
        directory = self._pins.interface(ifname)
        if clsact.ensure_qdisc(ifindex):
            (directory / "qdisc").mkdir(exist_ok=True)
        if clsact.program_id(ifindex, side.clsact) != bpf.program_info(program).id:
            try:
                clsact.attach(ifindex, program, self.program_ids(), side.clsact)
            except DatapathError as error:
                raise DatapathError(f"interface {ifname}: {error}") from None
        (directory / side.mark).mkdir(exist_ok=True)

    def _set_sent(self, ifname: str, ifindex: int, wanted: bool) -> None:
        if wanted:
            self._set_tc(ifname, ifindex, TC_OUT, EGRESS)
            return
        directory = self._pins.interface(ifname)
        if (directory / EGRESS.link).exists():
            _remove_link(directory / EGRESS.link)
        if (directory / EGRESS.mark).is_dir():
            clsact.detach(ifindex, self.program_ids(), EGRESS.clsact)
            remove_tree(directory / EGRESS.mark)

    # ---- interfaces that went away or came back ----

    def _follow_rename(self, ifname: str, ifindex: int) -> None:
        """Takes over the pins of this very interface if it had another name when it was attached."""
        for other in self._pins.interfaces():
            directory = self._pins.interface(other)
            links = [_link_ifindex(path) for path in directory.iterdir() if path.is_file()]
            renamed = other != ifname and _index_or_zero(other) != ifindex and ifindex in links
            if renamed and not self._pins.interface(ifname).exists():
                directory.rename(self._pins.interface(ifname))

    def _drop_stale(self, ifname: str, ifindex: int) -> None:
        """Forgets what was attached to an earlier interface of that name."""
        directory = self._pins.interface(ifname)
        if not directory.is_dir():
            return
        for path in list(directory.iterdir()):
            if path.is_file() and _link_ifindex(path) != ifindex:
                _remove_link(path)
        marked = [side for side in (INGRESS, EGRESS) if (directory / side.mark).is_dir()]
        for side in marked:
            if not clsact.program_id(ifindex, side.clsact):
                (directory / side.mark).rmdir()
        if marked and not any((directory / side.mark).is_dir() for side in marked):
            remove_tree(directory / "qdisc")

    # ---- replace, detach ----

    def replace_programs(self) -> None:
        """Moves every live attachment to the programs of this load. Each packet is seen by the old or the
        new one.
        """
        for attachment in self.attachments():
            if attachment.stale:
                continue
            directory = self._pins.interface(attachment.ifname)
            self._set_tc(
                attachment.ifname, attachment.ifindex, TC_ALONE if attachment.hook == "tc" else TC_BEHIND
            )
            if attachment.sent:
                self._set_tc(attachment.ifname, attachment.ifindex, TC_OUT, EGRESS)
            if attachment.hook != "tc":
                with (
                    bpf.pinned(self._programs / XDP_PROGRAM) as program,
                    bpf.pinned(directory / attachment.hook) as link,
                ):
                    if bpf.link_info(link).prog_id != bpf.program_info(program).id:
                        bpf.link_update(link, program)

    def detach(self, ifname: str) -> None:
        """Detaches everything from an interface and forgets it; no error if there is nothing, or no
        interface.
        """
        directory = self._pins.interface(ifname)
        if directory.is_dir():
            self._remove_parts(ifname)
            remove_tree(directory)

    def _remove_parts(self, ifname: str) -> None:
        """Detaches what is attached and removes its pins; XDP first, what it hands over is still finished."""
        directory = self._pins.interface(ifname)
        for name in (*XDP_FLAGS, INGRESS.link, EGRESS.link):
            if (directory / name).exists():
                _remove_link(directory / name)
        ifindex = _index_or_zero(ifname)
        for side in (INGRESS, EGRESS):
            if ifindex and (directory / side.mark).is_dir():
                clsact.detach(ifindex, self.program_ids(), side.clsact)
        if ifindex and (directory / "qdisc").is_dir():
            clsact.remove_qdisc(ifindex)
        for mark in (INGRESS.mark, EGRESS.mark, "qdisc"):
            remove_tree(directory / mark)


def facts_of(ifnames: Mapping[str, str] | list[str]) -> dict[str, InterfaceFacts]:
    """Facts of interfaces by name; an interface that does not exist is an error."""
    return {ifname: interface_facts(ifname) for ifname in ifnames}


def _index_or_zero(ifname: str) -> int:
    try:
        return interface_index(ifname)
    except DatapathError:
        return 0


def _has(directory: Path, side: Side) -> bool:
    return (directory / side.link).exists() or (directory / side.mark).is_dir()


def _xdp_hook(directory: Path) -> str | None:
    """The XDP hook an interface has a link for, dead or alive."""
    return next((hook for hook in XDP_FLAGS if (directory / hook).exists()), None)


def _link_ifindex(path: Path) -> int:
    """The interface a pinned link is attached to; 0 if that is gone, or the link."""
    try:
        with bpf.pinned(path) as link:
            return int(bpf.link_info(link).ifindex)
    except FileNotFoundError:
        return 0


def _remove_link(path: Path) -> None:
    """Detaches and unpins a link; one whose interface is gone has nothing to detach."""
    with bpf.pinned(path) as link:
        try:
            bpf.link_detach(link)
        except OSError as error:
            if error.errno != errno.ENOLINK:
                raise
    path.unlink()


def _create_tcx(program: int, ifindex: int, pin: Path, point: int) -> bool:
    """Attaches by TCX and pins the link. Returns False if the kernel has no TCX (before 6.6)."""
    try:
        link = bpf.link_create(program, ifindex, point)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    try:
        bpf.obj_pin(link, pin)
    finally:
        os.close(link)
    return True


def _refusal(ifname: str, hook: str, error: OSError) -> DatapathError:
    """Why an XDP hook could not be had, and what to do."""
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return DatapathError(
            f"interface {ifname}: another XDP program is attached (`ip link show {ifname}`): "
            "remove it or use hook: tc"
        )
    if hook == "xdp":
        return DatapathError(
            f"interface {ifname}: driver {driver(ifname) or 'none'} refuses native XDP ({reason(error)}): "
            "use hook: auto, tc or xdp-generic"
        )
    return DatapathError(f"interface {ifname}: generic XDP is refused ({reason(error)}): use hook: tc")
