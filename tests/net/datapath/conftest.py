# SPDX-License-Identifier: Apache-2.0
"""An instance of the data path and a wire to it, without daemon: for the tests of loading and attaching."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clearway.datapath import Datapath, Sizes, remove
from clearway.datapath.install import FILES, OBJECTS
from clearway.lab.namespace import Namespace
from clearway.lab.run import run

SIZES = Sizes(max_flows=4096, services=64, endpoints=128, wheel_slots=8192, nats=16, rules=64)


@pytest.fixture(scope="session")
def objects() -> Path:
    """The directory of the compiled objects."""
    if not all((OBJECTS / file).exists() for file in FILES.values()):
        pytest.skip("the objects are not compiled: make build")
    return OBJECTS


@pytest.fixture
def instance(lab_names: Iterator[str]) -> Iterator[str]:
    """A name no other test uses; whatever is pinned under it is removed afterwards."""
    name = f"cw-{next(lab_names)}"
    try:
        yield name
    finally:
        remove(name)


@pytest.fixture
def own_datapath(instance: str, objects: Path) -> Iterator[Datapath]:
    """A loaded instance, attached to nothing, for a test that changes or breaks it."""
    with Datapath.load(instance, SIZES, objects=objects) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def module_datapath(lab_names: Iterator[str], objects: Path) -> Iterator[Datapath]:
    """Verifying the programs takes seconds: most tests of a module share one load."""
    name = f"cw-{next(lab_names)}"
    try:
        with Datapath.load(name, SIZES, objects=objects) as loaded:
            yield loaded
    finally:
        remove(name)


@pytest.fixture
def datapath(module_datapath: Datapath) -> Iterator[Datapath]:
    """The module's instance, attached to nothing before and after."""
    yield module_datapath
    for attachment in module_datapath.attachments():
        module_datapath.detach(attachment.ifname)


@pytest.fixture
def changed_objects(objects: Path, tmp_path: Path) -> Path:
    """The same programs from files that differ, as after an upgrade: an ELF file may have a tail."""
    directory = tmp_path / "changed"
    shutil.copytree(objects, directory)
    for file in FILES.values():
        with (directory / file).open("ab") as copy:
            copy.write(b"\0upgraded")
    return directory


class Wire:
    """Two namespaces with a veth pair: `near`, where programs are attached to `cw-near`, and `far`."""

    def __init__(self, name: str) -> None:
        self.near = Namespace(f"cw-{name}-near")
        self.far = Namespace(f"cw-{name}-far")

    def build(self) -> None:
        self.near.create()
        self.far.create()
        self.connect("cw-near", "cw-far", 1)

    def connect(self, near: str, far: str, number: int) -> None:
        """A veth pair with addresses 10.9.NUMBER.1 (near) and .2 (far), up, with fixed neighbours."""
        self.near.ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.far.name)
        for place, device, host in ((self.near, near, 1), (self.far, far, 2)):
            place.ip("link", "set", device, "address", f"02:00:00:00:{number:02x}:{host:02x}", "up")
            place.ip("addr", "add", f"10.9.{number}.{host}/24", "dev", device)
            other = 3 - host
            place.ip(
                "neigh",
                "add",
                f"10.9.{number}.{other}",
                "dev",
                device,
                "lladdr",
                f"02:00:00:00:{number:02x}:{other:02x}",
            )

    def delete(self) -> None:
        for place in (self.near, self.far):
            if place.path.exists():
                place.delete()

    def link(self, device: str = "cw-near") -> dict[str, Any]:
        """What `ip -d link show` says of a device of `near`."""
        (shown,) = json.loads(self.near.ip("-json", "-d", "link", "show", "dev", device))
        assert isinstance(shown, dict)
        return shown

    def filters(self, device: str = "cw-near", side: str = "ingress") -> list[dict[str, Any]]:
        """What `tc filter show` says of a device of `near`; side: ingress | egress."""
        shown = self.near.run("tc", "-json", "filter", "show", "dev", device, side).stdout
        return [entry for entry in json.loads(shown or "[]") if "options" in entry]

    def qdiscs(self, device: str = "cw-near") -> list[str]:
        shown = self.near.run("tc", "-json", "qdisc", "show", "dev", device).stdout
        return [entry["kind"] for entry in json.loads(shown)]


@pytest.fixture
def wire(lab_names: Iterator[str]) -> Iterator[Wire]:
    made = Wire(next(lab_names))
    try:
        made.build()
        yield made
    finally:
        made.delete()


def bpftool(*arguments: str) -> Any:
    """The kernel's own listing, as bpftool tells it."""
    return json.loads(run(["bpftool", "-j", *arguments]).stdout or "null")
