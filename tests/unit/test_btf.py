# SPDX-License-Identifier: Apache-2.0
"""BTF becomes numpy dtypes: byte order, pads and nesting as the C compiler laid them out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clearway.datapath import btf, libbpf
from clearway.datapath.btf import Btf, map_layout
from clearway.datapath.errors import DatapathError
from clearway.datapath.install import FILES, OBJECTS
from clearway.datapath.loader import open_object, read_layouts
from clearway.model.sizes import bucket_bytes

U8, U16, U32, BOOL = 1, 2, 3, 4  # ids of the types that every set here begins with


class Builder:
    """Writes BTF data (Documentation/bpf/btf.rst) type by type; each method returns the type's id."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0
        for name, size, encoding in (("__u8", 1, 0), ("__u16", 2, 0), ("__u32", 4, 0), ("_Bool", 1, 4)):
            self.add(name, btf.INT, 0, size, struct.pack("I", encoding << 24 | size * 8))

    def string(self, text: str) -> int:
        if not text:
            return 0
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(
        self, name: str, kind: int, count: int, size_or_type: int, data: bytes = b"", flag: int = 0
    ) -> int:
        info = flag << 31 | kind << 24 | count
        self.types += struct.pack("III", self.string(name), info, size_or_type) + data
        self.count += 1
        return self.count

    def typedef(self, name: str, target: int) -> int:
        return self.add(name, btf.TYPEDEF, 0, target)

    def array(self, element: int, count: int) -> int:
        return self.add("", btf.ARRAY, 0, 0, struct.pack("III", element, U32, count))

    def record(
        self, name: str, size: int, members: list[tuple[str, int, int]], kind: int = btf.STRUCT, flag: int = 0
    ) -> int:
        data = b"".join(struct.pack("III", self.string(m), type_id, bits) for m, type_id, bits in members)
        return self.add(name, kind, len(members), size, data, flag)

    def enum(self, name: str, values: dict[str, int], signed: bool = False) -> int:
        layout = "Ii" if signed else "II"
        data = b"".join(struct.pack(layout, self.string(key), value) for key, value in values.items())
        return self.add(name, btf.ENUM, len(values), 4, data, int(signed))

    def section(self, name: str, variables: dict[str, tuple[int, int, int]]) -> int:
        """A data section; of each variable: type, offset, size."""
        ids = {v: self.add(v, btf.VAR, 0, kind, struct.pack("I", 1)) for v, (kind, _, _) in variables.items()}
        data = b"".join(struct.pack("III", ids[v], *place) for v, (_, *place) in variables.items())
        return self.add(name, btf.DATASEC, len(ids), sum(size for _, _, size in variables.values()), data)

    def bytes(self) -> bytes:
        header = struct.pack(
            "HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


@pytest.fixture
def builder() -> Builder:
    return Builder()


def parsed(builder: Builder) -> Btf:
    return Btf.parse(builder.bytes())


def test_struct_keeps_offsets_pads_and_size(builder: Builder) -> None:
    builder.record("row", 12, [("a", U8, 0), ("b", U32, 32), ("c", U16, 64)])
    with parsed(builder) as types:
        layout = types.struct("row")
    assert layout.names == ("a", "b", "c")
    assert [layout.fields[name][1] for name in ("a", "b", "c")] == [0, 4, 8] if layout.fields else False
    assert layout.itemsize == 12


def test_network_order_types_are_big_endian(builder: Builder) -> None:
    port, address = builder.typedef("__be16", U16), builder.typedef("__be32", U32)
    plain = builder.typedef("__u64_alias", U32)
    builder.record("key", 12, [("address", address, 0), ("port", port, 32), ("plain", plain, 64)])
    with parsed(builder) as types:
        row = np.zeros(1, types.struct("key"))
    row["address"], row["port"], row["plain"] = 0x0A000001, 80, 80
    assert row.tobytes() == bytes([10, 0, 0, 1, 0, 80, 0, 0]) + struct.pack("I", 80)


def test_union_is_its_bytes_and_arrays_are_subarrays(builder: Builder) -> None:
    words, octets = builder.array(U32, 4), builder.array(U8, 6)
    union = builder.record("addr", 16, [("words", words, 0), ("first", U32, 0)], kind=btf.UNION)
    builder.record("row", 24, [("address", union, 0), ("mac", octets, 128)])
    with parsed(builder) as types:
        layout = types.struct("row")
    assert layout["address"] == np.dtype(("u1", (16,)))
    assert layout["mac"] == np.dtype(("u1", (6,)))


def test_structs_nest_and_qualifiers_do_not_matter(builder: Builder) -> None:
    inner = builder.record("inner", 4, [("n", U32, 0)])
    const = builder.add("", btf.CONST, 0, inner)
    volatile = builder.add("", btf.VOLATILE, 0, const)
    builder.record("outer", 12, [("x", volatile, 0), ("many", builder.array(inner, 2), 32)])
    with parsed(builder) as types:
        row = np.zeros(1, types.struct("outer"))
    row["x"]["n"], row["many"]["n"] = 7, [[8, 9]]
    assert row.tobytes() == struct.pack("III", 7, 8, 9)


def test_bool_and_enum_members(builder: Builder) -> None:
    mode = builder.enum("mode", {"OFF": 0, "ON": 1})
    builder.record("row", 8, [("flag", BOOL, 0), ("mode", mode, 32)])
    with parsed(builder) as types:
        layout = types.struct("row")
    assert (layout["flag"], layout["mode"]) == (np.dtype("?"), np.dtype("u4"))


def test_enum_is_a_dictionary_in_order(builder: Builder) -> None:
    builder.enum("reason", {"LAST": 128, "FIRST": 0})
    builder.enum("code", {"FAILED": -1}, signed=True)
    with parsed(builder) as types:
        assert list(types.enum("reason").items()) == [("LAST", 128), ("FIRST", 0)]
        assert types.enum("code") == {"FAILED": -1}


def test_what_is_missing_is_named(builder: Builder) -> None:
    with parsed(builder) as types:
        with pytest.raises(DatapathError, match="enum reason is not in"):
            types.enum("reason")
        with pytest.raises(DatapathError, match="struct flow is not in"):
            types.struct("flow")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pointer", r"row\.x: a table cannot hold this type"),
        ("bit field", r"row\.x: bit fields are not supported"),
        ("nameless", r"row: a nameless member cannot be addressed"),
    ],
)
def test_what_a_table_must_not_hold_is_refused_with_its_place(
    builder: Builder, kind: str, message: str
) -> None:
    if kind == "pointer":
        builder.record("row", 8, [("x", builder.add("", btf.PTR, 0, U32), 0)])
    elif kind == "bit field":
        builder.record("row", 4, [("x", U32, 3 << 24)], flag=1)
    else:
        builder.record("row", 4, [("", builder.record("", 4, [("n", U32, 0)]), 0)])
    with parsed(builder) as types, pytest.raises(DatapathError, match=message):
        types.struct("row")


def test_members_are_found_inside_nameless_ones(builder: Builder) -> None:
    nameless = builder.record("", 4, [("hidden", U32, 0)], kind=btf.UNION)
    builder.record("net", 8, [("plain", U32, 0), ("", nameless, 32)])
    with parsed(builder) as types:
        assert types.has_member("net", "plain")
        assert types.has_member("net", "hidden")
        assert not types.has_member("net", "absent")
        assert not types.has_member("absent", "plain")


def test_layout_that_disagrees_with_the_map_is_refused(builder: Builder) -> None:
    with parsed(builder) as types:
        good = map_layout(types, name="t", type_ids=(U32, U16), sizes=(4, 2), shape=(2, 0, 9))
        assert (good.key, good.value, good.max_entries) == (np.dtype("u4"), np.dtype("u2"), 9)
        with pytest.raises(
            DatapathError, match="table t: BTF says key 4 and value 2 bytes, the map has 4 and 8"
        ):
            map_layout(types, name="t", type_ids=(U32, U16), sizes=(4, 8), shape=(2, 0, 9))
        with pytest.raises(DatapathError, match="table t has no BTF"):
            map_layout(types, name="t", type_ids=(0, 0), sizes=(4, 2), shape=(2, 0, 9))


def test_section_of_one_variable_is_a_table_of_one_row(builder: Builder) -> None:
    row = builder.record("active", 8, [("epoch", U32, 0), ("mirror", U32, 32)])
    section = builder.section(".data.active", {"active": (row, 0, 8)})
    with parsed(builder) as types:
        layout = map_layout(types, name="active", type_ids=(0, section), sizes=(4, 8), shape=(2, 1024, 1))
    assert (layout.key, layout.value.names) == (np.dtype("u4"), ("epoch", "mirror"))


def test_section_of_several_variables_is_no_table(builder: Builder) -> None:
    section = builder.section(".data", {"one": (U32, 0, 4), "two": (U32, 4, 4)})
    with (
        parsed(builder) as types,
        pytest.raises(DatapathError, match="t: a table cannot hold this type"),
    ):
        map_layout(types, name="t", type_ids=(0, section), sizes=(4, 8), shape=(2, 1024, 1))


def test_garbage_is_an_error() -> None:
    with pytest.raises(OSError):
        Btf.parse(b"\0" * 64)


@pytest.fixture(params=FILES.values())
def object_tables(request: pytest.FixtureRequest) -> Iterator[dict[str, btf.MapLayout]]:
    path = OBJECTS / request.param
    if not path.exists():
        pytest.skip("the objects are not compiled: make build")
    yield read_layouts(path)[0]


def test_compiled_tables_have_the_fields_of_types_h(object_tables: dict[str, btf.MapLayout]) -> None:
    assert "active_v2" in object_tables
    assert object_tables["active_v2"].value.names == ("epoch", "mirror")
    key = object_tables["inbound_v1"].key
    assert key == np.dtype(
        [
            ("src", "u1", (16,)),
            ("dst", "u1", (16,)),
            ("sport", ">u2"),
            ("dport", ">u2"),
            ("proto", "u1"),
            ("family", "u1"),
            ("pad", "u1", (2,)),
        ]
    )


def test_tables_of_tables_and_rings_need_no_types(object_tables: dict[str, btf.MapLayout]) -> None:
    """The kernel keeps none of them: the first hold numbers of other tables, the second have no rows."""
    outer, ring = object_tables["flow4_v3"], object_tables["records_v1"]
    assert (outer.key, outer.value, outer.max_entries) == (np.dtype("u4"), np.dtype("u4"), 2)
    assert (ring.key.itemsize, ring.value.itemsize) == (0, 0)


@pytest.fixture
def compiled_types() -> Iterator[Btf]:
    path = OBJECTS / FILES["sweep"]
    if not path.exists():
        pytest.skip("the objects are not compiled: make build")
    handle = open_object(path)
    yield Btf(libbpf.library().bpf_object__btf(handle), owned=False)
    libbpf.library().bpf_object__close(handle)


@pytest.mark.parametrize(("family", "address"), [(4, ">u4"), (6, ("u1", (16,)))])
def test_flow_table_has_the_fields_of_types_h(compiled_types: Btf, family: int, address: Any) -> None:
    bucket = compiled_types.struct(f"flow{family}_bucket")
    assert bucket.itemsize == bucket_bytes(family)
    marks, slots = bucket["marks"], bucket["slot"]
    assert marks.itemsize == 64
    assert (marks["mark"], marks["rare"]) == (np.dtype(("u4", (7,))),) * 2
    assert slots.subdtype is not None
    slot, shape = slots.subdtype
    assert shape == (7,)
    assert slot["key_src"] == slot["dst"] == np.dtype(address)
    flow = slot["flow"]
    assert (flow["key_sport"], flow["dport"], flow["carried"]) == (
        np.dtype(">u2"),
        np.dtype(">u2"),
        np.dtype("u8"),
    )
    assert {"state", "stamp", "seen", "egress", "dmac", "mtu"} <= set(flow.names or ())
