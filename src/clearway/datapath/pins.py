# SPDX-License-Identifier: Apache-2.0
"""Where an instance keeps its kernel objects, so that they outlive the daemon:

    /sys/fs/bpf/INSTANCE/maps/NAME              tables, shared by all programs
    /sys/fs/bpf/INSTANCE/progs/N/NAME           programs of the Nth load, and xdp_stages, tc_stages
    /sys/fs/bpf/INSTANCE/progs/N/made:PRINT     empty directory: load N is whole; of what it was made
                                                (install.py)
    /sys/fs/bpf/INSTANCE/links/IFNAME/HOOK      links: xdp or xdp-generic, and tc (TCX)
    /sys/fs/bpf/INSTANCE/links/IFNAME/clsact    empty directory instead of tc, before kernel 6.6: a filter
                                                of clsact
    /sys/fs/bpf/INSTANCE/links/IFNAME/qdisc     empty directory: that clsact qdisc is clearway's own
    /sys/fs/bpf/INSTANCE/settings/NAME:WAS:IS   empty directory: a setting that was changed (settings.py)

bpffs refuses names with a dot (kernel/bpf/inode.c, bpf_lookup): in IFNAME it is written as a colon, which no
interface name can contain (net/core/dev.c, dev_valid_name).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clearway.datapath import libbpf
from clearway.datapath.errors import DatapathError

BPFFS = Path("/sys/fs/bpf")
MOUNTS = Path("/proc/self/mountinfo")
NETNS = Path("/run/netns")  # where ip-netns(8) keeps names
MADE = "made:"


@dataclass(frozen=True)
class Load:
    """One load of all programs. `fingerprint` is what it was made of; None: it was not finished."""

    number: int
    directory: Path
    fingerprint: str | None


@dataclass(frozen=True)
class Pins:
    """The pins of one instance. Names only: nothing is opened here."""

    instance: str
    root: Path

    @classmethod
    def of(cls, instance: str, bpffs: Path = BPFFS) -> Pins:
        """DatapathError for a name that bpffs or a path cannot take."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", instance):
            raise DatapathError(f"instance name {instance!r}: use 1 to 64 letters, digits, '-' and '_'")
        return cls(instance, bpffs / instance)

    @property
    def maps(self) -> Path:
        return self.root / "maps"

    @property
    def progs(self) -> Path:
        return self.root / "progs"

    @property
    def links(self) -> Path:
        return self.root / "links"

    @property
    def settings(self) -> Path:
        return self.root / "settings"

    def make(self) -> None:
        for directory in (self.root, self.maps, self.progs, self.links):
            directory.mkdir(exist_ok=True, mode=0o700)

    # ---- loads ----

    def loads(self) -> list[Load]:
        """Every load that left something, oldest first."""
        if not self.progs.is_dir():
            return []
        numbers = sorted(int(entry.name) for entry in self.progs.iterdir() if entry.name.isdigit())
        return [self._load(number) for number in numbers]

    def _load(self, number: int) -> Load:
        directory = self.progs / str(number)
        marks = [entry.name for entry in directory.iterdir() if entry.name.startswith(MADE)]
        return Load(number, directory, marks[0].removeprefix(MADE) if marks else None)

    def newest(self) -> Load | None:
        """The newest load that is whole."""
        whole = [load for load in self.loads() if load.fingerprint is not None]
        return whole[-1] if whole else None

    # ---- links ----

    def interface(self, ifname: str) -> Path:
        """The directory of an interface's attachments."""
        if not ifname or "/" in ifname or ":" in ifname:
            raise DatapathError(f"{ifname!r} is not the name of an interface")
        return self.links / ifname.replace(".", ":")

    def interfaces(self) -> list[str]:
        """Names of the interfaces with attachments, as they were when attached."""
        if not self.links.is_dir():
            return []
        return sorted(entry.name.replace(":", ".") for entry in self.links.iterdir())


def remove_tree(directory: Path) -> None:
    """Removes pins and directories below `directory`, and itself; no error if it is not there.

    Removing the pin of a link detaches it, unless someone else holds it.
    """
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        directory.rmdir()


def is_mounted(path: Path = BPFFS) -> bool:
    """Whether a BPF filesystem is mounted there, as this process sees it."""
    return any((place, kind) == (str(path), "bpf") for place, kind, _source in _mounts(MOUNTS.read_text()))


def mount() -> None:
    """Mounts the BPF filesystem unless it is. DatapathError where pins would not outlive this process."""
    if is_mounted():
        return
    if in_own_mount_namespace():
        raise DatapathError(
            f"no BPF filesystem at {BPFFS} in this mount namespace (`ip netns exec` makes one of its own): "
            "enter network namespaces with `nsenter --net=/run/netns/NAME`"
        )
    result = libbpf.libc().mount(b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(0), b"mode=0700")
    if result != 0:
        raise DatapathError(f"cannot mount a BPF filesystem at {BPFFS}: {os.strerror(ctypes.get_errno())}")


def in_own_mount_namespace() -> bool:
    """Whether init sees other mounts than this process; in a container, which may not ask that, whether
    `ip netns exec` gave it its mounts.
    """
    with suppress(OSError):
        return Path("/proc/self/ns/mnt").stat().st_ino != Path("/proc/1/ns/mnt").stat().st_ino
    return mounted_by_ip_netns(MOUNTS.read_text())


def mounted_by_ip_netns(mountinfo: str, names: Path = NETNS) -> bool:
    """Whether /sys is what `ip netns exec` mounts there: its source bears the name of the network namespace
    (netns_switch, lib/namespace.c of iproute2).
    """
    return any(
        (names / source).exists()
        for place, kind, source in _mounts(mountinfo)
        if (place, kind) == ("/sys", "sysfs")
    )


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str]]:
    """Place, type and source of each mount (proc(5))."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, source, *_options = filesystem.split(" ")
        yield mount.split(" ")[4], kind, source
