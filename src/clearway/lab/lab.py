# SPDX-License-Identifier: Apache-2.0
"""The lab as a whole: comes up, goes down without a trace, also when it is interrupted or was killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from clearway.lab.daemon import Daemon, remove_instance
from clearway.lab.namespace import Namespace, end_processes, existing
from clearway.lab.nginx import Nginx
from clearway.lab.run import LabError, undisturbed
from clearway.lab.topology import VIP4, VIP6, HostPlan, Role, Topology
from clearway.lab.wiring import wire

LABS = Path("/run/clearway-lab")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


@dataclass(frozen=True)
class Host:
    """A host of the lab, and its nginx if it is a server."""

    plan: HostPlan
    ns: Namespace
    nginx: Nginx | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    def address(self, family: int) -> str:
        return self.plan.address(family)


class Lab:
    """Clients, a node and nginx servers in namespaces `cw-NAME-...`.

    As a context manager it ends with the block. `up(keep=True)` leaves it standing for other processes,
    which find it by `Lab(NAME)` and end it by `down()`.
    """

    def __init__(self, name: str = "lab", topology: Topology | None = None) -> None:
        if not NAME.fullmatch(name):
            raise LabError(f"'{name}' cannot name a lab; use up to 24 lower-case letters, digits and dashes")
        self.name = name
        self.topology = topology or Topology()
        self.prefix = f"cw-{name}-"
        self.instance = f"cw-{name}"
        self.directory = LABS / name
        self.node = Namespace(f"{self.prefix}node")
        self.hosts = {plan.name: self._host(plan) for plan in self.topology.hosts()}

    def _host(self, plan: HostPlan) -> Host:
        namespace = Namespace(self.prefix + plan.name)
        server = plan.role is Role.SERVER
        return Host(
            plan, namespace, Nginx(namespace, plan.name, self.directory / plan.name) if server else None
        )

    def __getitem__(self, host: str) -> Host:
        return self.hosts[host]

    @property
    def client(self) -> Host:
        """The client that most things are done from."""
        return self.hosts["client1"]

    @property
    def outside(self) -> Host:
        return self.hosts["outside"]

    @property
    def clients(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.plan.role is Role.CLIENT]

    @property
    def servers(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.plan.role is Role.SERVER]

    @property
    def interfaces(self) -> list[str]:
        """The node's interfaces, as a configuration names them."""
        return [host.plan.interface for host in self.hosts.values()]

    def vip(self, family: int) -> str:
        """The service address of a family (4 or 6)."""
        return VIP4 if family == 4 else VIP6

    def vip_url(self, family: int) -> str:
        """The service address as a URL spells it."""
        return VIP4 if family == 4 else f"[{VIP6}]"

    def node_address(self, interface: str, family: int) -> str:
        """The node's own global address on one of its interfaces; LabError when it has none."""
        option, words = ("-4", "inet") if family == 4 else ("-6", "inet6")
        listed = self.node.ip(
            option, "-oneline", "address", "show", "dev", interface, "scope", "global"
        ).split()
        if words not in listed:
            raise LabError(f"the node's {interface} has no IPv{family} address")
        return listed[listed.index(words) + 1].partition("/")[0]

    # ---- coming up, going down ----

    def up(self, *, keep: bool = False) -> None:
        """Build the lab; with `keep` it outlives this process.

        Raises LabError when it cannot be built (nothing is left then) or one of that name is up.
        """
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        if self.is_up():
            if not self._abandoned():
                raise LabError(f"lab {self.name} is up already; end it: clearway lab down --name {self.name}")
            self.down()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not keep:
                self._owner.write_text(f"{os.getpid()} {_start_time(os.getpid())}\n")
            wire(self.topology, self.prefix)
            for server in self.servers:
                if server.nginx is not None:
                    server.nginx.start()
        except BaseException:
            self.down()
            raise

    def is_up(self) -> bool:
        return self.directory.exists() or bool(existing(self.prefix))

    def down(self) -> bool:
        """End every process of the lab, remove data paths, namespaces and files. False: there was nothing."""
        with undisturbed():
            namespaces = existing(self.prefix)
            found = self.is_up()
            end_processes(namespaces)
            for instance in self._instances():
                remove_instance(
                    self.node, instance, {"CLEARWAY_STATE_DIR": str(self.directory / instance / "state")}
                )
            for namespace in namespaces:
                namespace.delete()
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # other labs may be in it
                LABS.rmdir()
            return found

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def _owner(self) -> Path:
        """Names the process whose end is the end of the lab."""
        return self.directory / "owner"

    def _abandoned(self) -> bool:
        """Whether the process that was to end this lab is gone without having done so."""
        if not self._owner.exists():
            return not self.directory.exists()
        said = self._owner.read_text().split()
        return len(said) == 2 and _start_time(int(said[0])) != said[1]  # not two: it is just being written

    def _instances(self) -> list[str]:
        marked = self.directory / "instances"
        return (
            [self.instance, *(path.name for path in marked.iterdir())] if marked.exists() else [self.instance]
        )

    # ---- what runs on the node ----

    def prepare_for(self, hook: str) -> None:
        """Set the offloads of the node's neighbours to what a hook (xdp, tc, or linux for none) needs.

        XDP sees frames without their metadata, so checksums must be in them (TX checksum offload off), and a
        veth takes redirected frames only while its peer polls (GRO on).
        """
        xdp = hook.startswith("xdp")
        for host in self.hosts.values():
            routed = len(host.plan.path_mtus) > 1
            peer = Namespace(f"{host.ns.name}-r1") if routed else host.ns
            device = "near" if routed else "eth0"
            peer.run("ethtool", "-K", device, "tx", "off" if xdp else "on", "gro", "on" if xdp else "off")

    @contextlib.contextmanager
    def daemon(self, configuration: str, *, instance: str | None = None) -> Iterator[Daemon]:
        """A running `clearway run` on the node; its data path is removed at the end of the block."""
        name = instance or self.instance
        (self.directory / "instances" / name).mkdir(parents=True, exist_ok=True)
        daemon = Daemon(self.node, name, self.directory / name, configuration)
        try:
            daemon.start()
            yield daemon
        finally:
            with undisturbed():
                daemon.down()


def reap() -> list[str]:
    """Take down every lab whose owner was killed before it could; their names."""
    reaped = []
    found = sorted(path.name for path in LABS.iterdir()) if LABS.is_dir() else []
    for lab in (Lab(name) for name in found if NAME.fullmatch(name)):
        if lab._abandoned():
            lab.down()
            reaped.append(lab.name)
    return reaped


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks after boot (proc(5), stat field 22); empty if none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
