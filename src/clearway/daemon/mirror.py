# SPDX-License-Identifier: Apache-2.0
"""Keeps the data path's picture of Linux' devices true, and tells it when stored decisions may be wrong.

Order matters: rows first, then the bump, so that whoever decides anew decides on the new rows. Everything
here is quick and runs in the event loop itself, at once when the kernel announces something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TypeVar

import numpy as np
import structlog

from clearway.datapath import Attachment, Datapath, Table
from clearway.linux.mirror import DeviceRow, PortRow, Rows, VlanKey, device_rows, port_rows, vlan_rows
from clearway.linux.watch import Watch

log = structlog.get_logger()

# Drivers with ndo_xdp_xmit, for kernels that cannot be asked (before 6.3). Most of them set up the queues
# for it only while they run an XDP program themselves, so they count only then.
XDP_TRANSMITTERS = frozenset(
    {
        "bnxt_en",
        "dpaa2-eth",
        "ena",
        "fsl_dpa",
        "fsl_enetc",
        "hv_netvsc",
        "i40e",
        "ice",
        "igb",
        "igc",
        "ixgbe",
        "mlx5_core",
        "mvneta",
        "mvpp2",
        "netsec",
        "qede",
        "sfc",
        "st_gmac",
        "virtio_net",
    }
)

Key = TypeVar("Key")
Value = TypeVar("Value")


class Mirror:
    """Owns device_v1, vlan_v1 and port_v1. For use by one thread."""

    def __init__(self, datapath: Datapath, watch: Watch) -> None:
        self.watch = watch
        self._datapath = datapath
        self._devices = datapath.table("device_v1")
        self._vlans = datapath.table("vlan_v1")
        self._ports = datapath.table("port_v1")
        self._attachments: tuple[Attachment, ...] = ()
        self._listened: frozenset[int] = frozenset()
        self._shaped: frozenset[int] = frozenset()
        self._proved: Mapping[int, str] = {}
        self._written: Rows | None = None
        self._complaints: tuple[str, ...] = ()

    def take_in(self) -> bool:
        """Read what was announced and act on it. True when links came, went or changed."""
        before = dict(self.watch.picture.links)
        sentences = self.watch.read()
        if not sentences:
            return False
        self.write()
        self.bump(sentences)
        return self.watch.picture.links != before

    def why_handed_to_tc(self, ifindex: int) -> str:
        """Why XDP does not send what is to leave by that device; "" if it does, or if none is on XDP."""
        if self._written is None or all(a.hook == "tc" for a in self._attachments):
            return ""
        device = self._written.devices.get(ifindex)
        if device is None or device.xdp_transmit:
            return ""
        if ifindex in self._shaped:
            return "tc shapes or filters what leaves"
        if ifindex in self._listened:
            return "somebody listens (tcpdump)"
        return "its driver takes no redirected frames"

    def bump(self, sentences: list[str]) -> None:
        """Have the next hop of every flow resolved again, at the flow's next packet."""
        self._datapath.bump_mirror()
        log.debug("next hops will be resolved again", why=sentences[0], others=len(sentences) - 1)

    def set_attachments(self, attachments: Iterable[Attachment]) -> None:
        """Tell which interfaces carry programs now."""
        self._attachments = tuple(attachments)
        self.look_at_devices()

    def set_listened(self, ifindexes: frozenset[int]) -> None:
        """Tell which devices packet sockets listen to (tcpdump): XDP would pass them by."""
        if ifindexes != self._listened:
            self._listened = ifindexes
            self.look_at_devices()

    def set_shaped(self, ifindexes: frozenset[int]) -> None:
        """Tell of which devices tc shapes or filters what leaves: XDP would send past it, and who pushes the
        tag of a VLAN device past that one.
        """
        if ifindexes != self._shaped:
            self._shaped = ifindexes
            self.look_at_devices()

    def set_proved(self, names: Mapping[int, str]) -> None:
        """Tell by which names the proof of Linux' rules knows devices."""
        if names != self._proved:
            self._proved = names
            self.look_at_devices()

    def look_at_devices(self) -> None:
        """What XDP can do on some device may have changed: flows remember it, too."""
        if self.write():
            self.bump(["what the data path knows of its devices has changed"])

    def write(self) -> bool:
        """Bring the tables up to date: only what differs is written. True when something did.

        Raises DatapathError, and NetlinkError when the kernel does not tell.
        """
        wanted, complaints = self._wanted()
        if self._written is None:
            self._written = self._inherited()
        changed = wanted != self._written
        _replace(self._devices, self._written.devices, wanted.devices, _encode_devices)
        _replace(self._vlans, self._written.vlans, wanted.vlans, _encode_vlans)
        # An array has no rows to delete: a slot that nobody has is all zeros.
        emptied = {slot: PortRow(0, bytes(6)) for slot in self._written.ports.keys() - wanted.ports.keys()}
        _replace(self._ports, self._written.ports, {**wanted.ports, **emptied}, _encode_ports)
        self._written = wanted
        for complaint in complaints:
            if complaint not in self._complaints:
                log.warning(complaint)
        self._complaints = complaints
        return changed

    def _wanted(self) -> tuple[Rows, tuple[str, ...]]:
        """The rows as they should be, and what could not be done, a sentence each."""
        picture = self.watch.picture
        ours = [a.ifindex for a in self._attachments if a.ifindex]
        ports, homeless = port_rows(picture.links, ours, self._ports.max_entries, self._listened)
        complaints = [
            f"{link.name}: its place in port_v1 is taken by another interface;"
            " packets for other hosts reach Linux later than they could"
            for link in homeless
        ]
        addresses = picture.addresses.values()
        devices = device_rows(picture.links, addresses, self._transmitters(), self._proved, self._shaped)
        vlans = vlan_rows(picture.links)
        complaints += _overflow("devices", len(devices), self._devices)
        complaints += _overflow("VLANs", len(vlans), self._vlans)
        wanted = Rows(_first(devices, self._devices), _first(vlans, self._vlans), ports)
        return wanted, tuple(complaints)

    def _transmitters(self) -> Mapping[int, bool]:
        asked = self.watch.xdp_transmit()
        told = self._transmitters_by_driver() if asked is None else asked
        not_past = self._listened | self._shaped
        return {ifindex: can and ifindex not in not_past for ifindex, can in told.items()}

    def _transmitters_by_driver(self) -> Mapping[int, bool]:
        return {a.ifindex: a.hook == "xdp" and a.driver in XDP_TRANSMITTERS for a in self._attachments}

    def _inherited(self) -> Rows:
        """What an earlier daemon has left, to be taken away unless it is wanted; its values do not matter."""
        devices = {int(key): DeviceRow(0) for key in self._devices.items()[0]}
        vlans = {
            VlanKey(int(k["ifindex"]), int(k["outer"]), int(k["inner"])): 0 for k in self._vlans.items()[0]
        }
        slots, values = self._ports.items()
        ports = {int(slot): PortRow(0, b"") for slot in slots[values["ifindex"] != 0]}
        return Rows(devices, vlans, ports)


def _overflow(what: str, number: int, table: Table) -> list[str]:
    if number <= table.max_entries:
        return []
    return [
        f"this namespace has {number} {what}, the data path has room for {table.max_entries};"
        " what passes through the others is left to Linux"
    ]


def _first(rows: dict[Key, Value], table: Table) -> dict[Key, Value]:
    return dict(islice(rows.items(), table.max_entries))


def _replace(
    table: Table,
    written: Mapping[Key, Value],
    wanted: Mapping[Key, Value],
    encode: Callable[[Table, Mapping[Key, Value]], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Delete what is not wanted, then write what is new or different."""
    gone = {key: value for key, value in written.items() if key not in wanted}
    if gone:
        table.delete(encode(table, gone)[0])
    changed = {key: value for key, value in wanted.items() if written.get(key) != value}
    if changed:
        table.update(*encode(table, changed))


def _encode_devices(table: Table, rows: Mapping[int, DeviceRow]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = table.rows(len(rows))
    keys[:] = list(rows)
    for value, row in zip(values, rows.values(), strict=True):
        value["lower"] = row.lower
        value["vlan_outer"] = row.vlan_outer
        value["vlan_inner"] = row.vlan_inner
        value["address4"] = int.from_bytes(row.address4, "big")
        value["address6"] = np.frombuffer(row.address6, np.uint8)
        value["xdp_transmit"] = row.xdp_transmit
        value["proved"] = row.proved
    return keys, values


def _encode_vlans(table: Table, rows: Mapping[VlanKey, int]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = table.rows(len(rows))
    for key, value, (row, ifindex) in zip(keys, values, rows.items(), strict=True):
        key["ifindex"], key["outer"], key["inner"] = row.ifindex, row.outer, row.inner
        value["ifindex"] = ifindex
    return keys, values


def _encode_ports(table: Table, rows: Mapping[int, PortRow]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = table.rows(len(rows))
    keys[:] = list(rows)
    for value, row in zip(values, rows.values(), strict=True):
        value["ifindex"] = row.ifindex
        value["mac"] = np.frombuffer(row.mac, np.uint8)
        value["listened"] = row.listened
    return keys, values
