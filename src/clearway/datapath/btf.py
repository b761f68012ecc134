# SPDX-License-Identifier: Apache-2.0
"""BTF (the kernel's type information, Documentation/bpf/btf.rst) as numpy dtypes and dictionaries.

The layouts of tables are written down once, in bpf/types.h. The compiler puts them into the object's BTF, the
kernel keeps that with every map, and here they become dtypes: nothing about a layout is said twice.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearway.datapath import bpf, libbpf
from clearway.datapath.errors import DatapathError

# enum of kinds in <linux/btf.h>
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
TRANSPARENT = {VOLATILE, CONST, RESTRICT, TYPE_TAG}
INT_SIGNED, INT_BOOL = 1, 4
# Types whose name says more than their size: numbers in network order.
NETWORK_ORDER = {"__be16": ">u2", "__be32": ">u4", "__be64": ">u8"}


@dataclass(frozen=True)
class Member:
    """A member of a struct or union: offset and size in bits; size 0 unless it is a bit field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


@dataclass(frozen=True)
class Type:
    """One struct btf_type: `size_or_type` is what its kind makes of that word, `data` the address of what
    follows.
    """

    name: str
    kind: int
    count: int
    flag: bool
    size_or_type: int
    data: int


class Btf:
    """A set of types. Owns libbpf's handle unless it was lent one (that of an open object)."""

    def __init__(self, handle: int, owned: bool = True) -> None:
        self._handle = handle
        self._owned = owned

    @classmethod
    def of_kernel(cls) -> Btf:
        """The running kernel's types. OSError if it was built without them."""
        return cls(bpf.check_pointer(libbpf.library().btf__load_vmlinux_btf(), "kernel BTF"))

    @classmethod
    def of_id(cls, btf_id: int) -> Btf:
        """What the kernel keeps for a loaded map or program (`btf_id` of its info)."""
        return cls(bpf.check_pointer(libbpf.library().btf__load_from_kernel_by_id(btf_id), f"BTF {btf_id}"))

    def of_module(self, name: str) -> Btf:
        """A kernel module's types, on top of these, which have to outlive them. OSError if it is not
        loaded.
        """
        handle = libbpf.library().btf__load_module_btf(name.encode(), self._handle)
        return Btf(bpf.check_pointer(handle, f"BTF of module {name}"))

    @classmethod
    def parse(cls, raw: bytes) -> Btf:
        """Types from BTF data as it stands in an object's .BTF section."""
        return cls(bpf.check_pointer(libbpf.library().btf__new(raw, len(raw)), "BTF data"))

    def close(self) -> None:
        if self._handle and self._owned:
            libbpf.library().btf__free(self._handle)
        self._handle = 0

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- raw access ----

    def type(self, type_id: int) -> Type:
        """The type of that id. KeyError if there is none."""
        address = libbpf.library().btf__type_by_id(self._handle, type_id)
        if not address:
            raise KeyError(type_id)
        name_offset, info, size_or_type = struct.unpack("III", ctypes.string_at(address, 12))
        name = libbpf.library().btf__name_by_offset(self._handle, name_offset).decode()
        return Type(name, info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), size_or_type, address + 12)

    def find(self, name: str, kind: int) -> int | None:
        """The id of the first type of that name and kind."""
        found = int(libbpf.library().btf__find_by_name_kind(self._handle, name.encode(), kind))
        return found if found > 0 else None

    def members(self, kind: Type) -> list[Member]:
        """The members of a struct or union, in order."""
        found = []
        for name_offset, type_id, offset in struct.iter_unpack(
            "III", ctypes.string_at(kind.data, 12 * kind.count)
        ):
            name = libbpf.library().btf__name_by_offset(self._handle, name_offset).decode()
            bits = (offset & 0xFFFFFF, offset >> 24) if kind.flag else (offset, 0)
            found.append(Member(name, type_id, *bits))
        return found

    def skip(self, type_id: int) -> int:
        """The id behind const, volatile, restrict and type tags."""
        while (kind := self.type(type_id)).kind in TRANSPARENT:
            type_id = kind.size_or_type
        return type_id

    def has_member(self, struct_name: str, member: str) -> bool:
        """Whether the struct exists and has that member (anonymous inner structs and unions included)."""
        type_id = self.find(struct_name, STRUCT)
        return type_id is not None and self._has_member(type_id, member)

    def _has_member(self, type_id: int, wanted: str) -> bool:
        kind = self.type(self.skip(type_id))
        if kind.kind not in (STRUCT, UNION):
            return False
        members = self.members(kind)
        return any(m.name == wanted for m in members) or any(
            self._has_member(m.type_id, wanted) for m in members if not m.name
        )

    # ---- what the rest of the package asks for ----

    def enum(self, name: str) -> dict[str, int]:
        """Enumerators of an enum, in source order. DatapathError if the object has no such enum."""
        type_id = self.find(name, ENUM)
        if type_id is None:
            raise DatapathError(f"enum {name} is not in the object's BTF: no program or table mentions it")
        kind = self.type(type_id)
        layout = "Ii" if kind.flag else "II"
        lookup = libbpf.library().btf__name_by_offset
        rows = struct.iter_unpack(layout, ctypes.string_at(kind.data, 8 * kind.count))
        return {lookup(self._handle, offset).decode(): value for offset, value in rows}

    def struct(self, name: str) -> np.dtype[Any]:
        """The dtype of a struct by its name. DatapathError if the object has no such struct."""
        type_id = self.find(name, STRUCT)
        if type_id is None:
            raise DatapathError(f"struct {name} is not in the object's BTF: no program or table mentions it")
        return self.dtype(type_id)

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Offset and type id of each variable of a data section (".rodata"); empty without one."""
        type_id = self.find(section, DATASEC)
        if type_id is None:
            return {}
        kind = self.type(type_id)
        found = {}
        for variable_id, offset, _ in struct.iter_unpack("III", ctypes.string_at(kind.data, 12 * kind.count)):
            variable = self.type(variable_id)
            found[variable.name] = offset, variable.size_or_type
        return found

    def dtype(self, type_id: int, where: str = "") -> np.dtype[Any]:
        """The numpy dtype of a type: a union as its bytes, an array as a subarray, a struct with every pad
        kept.

        DatapathError for what a table must not hold: pointers, bit fields, nameless members.
        """
        kind = self.type(self.skip(type_id))
        where = where or kind.name
        if kind.kind == TYPEDEF:
            named = NETWORK_ORDER.get(kind.name)
            return np.dtype(named) if named else self.dtype(kind.size_or_type, where)
        if kind.kind == INT:
            return self._integer(kind)
        if kind.kind in (ENUM, ENUM64):
            return np.dtype(f"{'i' if kind.flag else 'u'}{kind.size_or_type}")
        if kind.kind == FLOAT:
            return np.dtype(f"f{kind.size_or_type}")
        if kind.kind == UNION:
            return np.dtype((np.uint8, (kind.size_or_type,)))
        if kind.kind == ARRAY:
            element, _, count = struct.unpack("III", ctypes.string_at(kind.data, 12))
            return np.dtype((self.dtype(element, where), (count,)))
        if kind.kind == STRUCT:
            return self._structure(kind, where)
        if kind.kind == DATASEC and kind.count == 1:  # a variable in a section of its own
            ((_, type_id),) = self.variables(kind.name).values()
            return self.dtype(type_id, where)
        raise DatapathError(f"{where}: a table cannot hold this type (BTF kind {kind.kind})")

    def _integer(self, kind: Type) -> np.dtype[Any]:
        (encoding,) = struct.unpack("I", ctypes.string_at(kind.data, 4))
        if encoding >> 24 & INT_BOOL:
            return np.dtype(np.bool_)
        return np.dtype(f"{'i' if encoding >> 24 & INT_SIGNED else 'u'}{kind.size_or_type}")

    def _structure(self, kind: Type, where: str) -> np.dtype[Any]:
        members = self.members(kind)
        for member in members:
            if not member.name:
                raise DatapathError(f"{where}: a nameless member cannot be addressed, give it a name")
            if member.bit_size or member.bit_offset % 8:
                raise DatapathError(f"{where}.{member.name}: bit fields are not supported")
        return np.dtype(
            {
                "names": [m.name for m in members],
                "formats": [self.dtype(m.type_id, f"{where}.{m.name}") for m in members],
                "offsets": [m.bit_offset // 8 for m in members],
                "itemsize": kind.size_or_type,
            }
        )


@dataclass(frozen=True)
class MapLayout:
    """What has to agree between a pinned map and the programs that use it. `type` is an enum bpf_map_type."""

    name: str
    type: int
    flags: int
    max_entries: int
    key: np.dtype[Any]
    value: np.dtype[Any]


# Maps that the kernel keeps no types of (enum bpf_map_type), and what they look like from user space: tables
# by number, written as file descriptors and read as ids; and a ring, which has no rows.
BPF_MAP_TYPE_ARRAY_OF_MAPS = 12
BPF_MAP_TYPE_RINGBUF = 27
NUMBER = np.dtype("<u4")
NOTHING = np.dtype([])
# What libbpf puts before the name of a table that is a variable.
VARIABLE = ".data."
UNTYPED = {BPF_MAP_TYPE_ARRAY_OF_MAPS: (NUMBER, NUMBER), BPF_MAP_TYPE_RINGBUF: (NOTHING, NOTHING)}


def map_layout(
    types: Btf, *, name: str, type_ids: tuple[int, int], sizes: tuple[int, int], shape: tuple[int, int, int]
) -> MapLayout:
    """Layout of a map from its BTF.

    `type_ids` and `sizes` are those of key and value as the map has them, `shape` is its type, flags and
    max_entries. A variable (VARIABLE in bpf/maps.h) has no type of a key. DatapathError if the types do not
    say what the sizes say.
    """
    if shape[0] in UNTYPED:
        return untyped_layout(name, shape)
    if not type_ids[1]:
        raise DatapathError(f"table {name} has no BTF: declare its key and value with __type")
    key, value = types.dtype(type_ids[0], name) if type_ids[0] else NUMBER, types.dtype(type_ids[1], name)
    if (key.itemsize, value.itemsize) != sizes:
        raise DatapathError(
            f"table {name}: BTF says key {key.itemsize} and value {value.itemsize} bytes, "
            f"the map has {sizes[0]} and {sizes[1]}"
        )
    return MapLayout(name, shape[0], shape[1], shape[2], key, value)


def untyped_layout(name: str, shape: tuple[int, int, int]) -> MapLayout:
    """Layout of a map whose type is in UNTYPED."""
    return MapLayout(name, *shape, *UNTYPED[shape[0]])
