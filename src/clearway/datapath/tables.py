# SPDX-License-Identifier: Apache-2.0
"""Tables: a BPF map as numpy arrays of keys and values, whole batches at a time."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import byref, c_uint32
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clearway.datapath import bpf, libbpf
from clearway.datapath.btf import UNTYPED, VARIABLE, Btf, MapLayout, map_layout, untyped_layout
from clearway.datapath.errors import DatapathError

Array = npt.NDArray[Any]

# enum bpf_map_type
BPF_MAP_TYPE_ARRAY = 2
BPF_MAP_TYPE_PERCPU_HASH = 5
BPF_MAP_TYPE_PERCPU_ARRAY = 6
BPF_MAP_TYPE_LRU_PERCPU_HASH = 10
PER_CPU = (BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_LRU_PERCPU_HASH)
INDEXED = (BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY)
# flags of BPF_MAP_UPDATE_ELEM
BPF_ANY = 0
BPF_NOEXIST = 1
# The kernel's own number for "this map cannot do that" (include/linux/errno.h); user space has no name for
# it.
ENOTSUPP = 524
NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP)

ROWS_A_CALL = 1 << 16
# How often a read of a table that changes under our hands is begun again before giving up.
READ_ATTEMPTS = 20


class Batch(Protocol):
    """One of libbpf's batch calls with everything bound but the number of rows, which it writes back."""

    def __call__(self, first: int, count: c_uint32) -> int: ...


class Table:
    """A map by its file descriptor, which it owns.

    Keys and values are structured arrays of `key_dtype` and `value_dtype`, one row an entry. Values of a
    per-CPU table have the CPU as their first axis: (possible CPUs, n). Every method raises DatapathError
    naming the table.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            self.layout = read_layout(fd)
        except BaseException:
            self.close()
            raise
        self.name = self.layout.name
        self.key_dtype = self.layout.key
        self.value_dtype = self.layout.value
        self.max_entries = self.layout.max_entries
        self.per_cpu = self.layout.type in PER_CPU
        self.indexed = self.layout.type in INDEXED
        self._cpus = bpf.check(libbpf.library().libbpf_num_possible_cpus()) if self.per_cpu else 1
        # The kernel gives each CPU's value on a multiple of 8 bytes.
        stride = -(-self.value_dtype.itemsize // 8) * 8 if self.per_cpu else self.value_dtype.itemsize
        self._cell = np.dtype(
            {"names": ["value"], "formats": [self.value_dtype], "offsets": [0], "itemsize": stride}
        )

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def rows(self, count: int) -> tuple[Array, Array]:
        """Zeroed keys and values to fill in."""
        shape = (self._cpus, count) if self.per_cpu else (count,)
        return np.zeros(count, self.key_dtype), np.zeros(shape, self.value_dtype)

    # ---- reading ----

    def items(self) -> tuple[Array, Array]:
        """Every row: keys (n,) and values (n,), per-CPU (cpus, n). Of an array, every index.

        Not a snapshot: a row that comes, changes or goes meanwhile may or may not be seen; the others are
        seen once.
        """
        for _ in range(READ_ATTEMPTS):
            try:
                keys, cells = self._read_batches()
                return keys, self._values(cells)
            except OSError as error:
                if error.errno in NO_BATCH:
                    return self._read_one_by_one()
                # A table without buckets of its own loses its place when the row it stands at is deleted.
                if error.errno != errno.EINTR:
                    raise self._error("cannot be read", error) from None
        raise DatapathError(f"table {self.name} changes too fast to be read: tried {READ_ATTEMPTS} times")

    def _read_batches(self) -> tuple[Array, Array]:
        """Rows by BPF_MAP_LOOKUP_BATCH into arrays that grow when the table has more than it ought to."""
        call = libbpf.library().bpf_map_lookup_batch
        step = min(ROWS_A_CALL, max(self.max_entries, 16))
        keys, cells = self._buffers(self.max_entries + step)
        # Where to go on: the number of a bucket or a key, whichever is longer.
        places = [ctypes.create_string_buffer(max(self.key_dtype.itemsize, 4)) for _ in range(2)]
        read, begun = 0, False
        while True:
            if read + step > len(keys):
                keys, cells = self._grow(keys, cells, read + 2 * step)
            count = c_uint32(step)
            result = call(
                self.fd,
                places[0] if begun else None,
                places[1],
                keys[read:].ctypes.data,
                cells[read:].ctypes.data,
                byref(count),
                None,
            )
            if result == -errno.ENOSPC:  # one bucket holds more rows than were asked for
                step *= 2
                continue
            if result not in (0, -errno.ENOENT):
                bpf.check(result)
            read += count.value
            if result == -errno.ENOENT:  # the end
                return keys[:read], cells[:read]
            begun = True
            places.reverse()

    def _buffers(self, count: int) -> tuple[Array, Array]:
        """Room for `count` rows. Memory that is never written costs nothing, so it may be generous."""
        return np.empty(count, self.key_dtype), np.empty((count, self._cpus), self._cell)

    def _grow(self, keys: Array, cells: Array, count: int) -> tuple[Array, Array]:
        bigger = self._buffers(max(count, 2 * len(keys)))
        bigger[0][: len(keys)] = keys
        bigger[1][: len(cells)] = cells
        return bigger

    def _values(self, cells: Array) -> Array:
        """Cells (n, cpus) as the caller gets them."""
        values: Array = cells["value"]
        return values.swapaxes(0, 1) if self.per_cpu else values[:, 0]

    def _read_one_by_one(self) -> tuple[Array, Array]:
        """Rows by BPF_MAP_GET_NEXT_KEY, for map types without batches (since 5.6 hash and array, later the
        others).
        """
        found: dict[bytes, None] = {}
        key = ctypes.create_string_buffer(self.key_dtype.itemsize)
        following = ctypes.create_string_buffer(self.key_dtype.itemsize)
        previous = None
        # When the key we stand at is deleted the walk begins again: a limit on steps, and rows counted once.
        for _ in range(READ_ATTEMPTS * (self.max_entries + 1)):
            result = libbpf.library().bpf_map_get_next_key(self.fd, previous, following)
            if result == -errno.ENOENT:
                break
            if result < 0:
                raise self._error("cannot be read", OSError(-result, os.strerror(-result)))
            found[following.raw] = None
            key, following = following, key
            previous = key
        keys = np.frombuffer(b"".join(found), self.key_dtype).copy()
        values, present = self.lookup(keys)
        return keys[present], values[..., present] if self.per_cpu else values[present]

    def lookup(self, keys: npt.ArrayLike) -> tuple[Array, Array]:
        """Values of the given keys, and a bool array of which were found; a value not found is zero."""
        wanted = self._keys(keys)
        cells = np.zeros((len(wanted), self._cpus), self._cell)
        found = np.ones(len(wanted), np.bool_)
        call = libbpf.library().bpf_map_lookup_elem
        for row in range(len(wanted)):
            result = call(self.fd, wanted[row:].ctypes.data, cells[row:].ctypes.data)
            if result == -errno.ENOENT:
                found[row] = False
            elif result < 0:
                raise self._error("cannot be read", OSError(-result, os.strerror(-result)))
        return self._values(cells), found

    # ---- writing ----

    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike, create_only: bool = False) -> None:
        """Writes rows, in order; with `create_only` a row that is there already is an error.

        On an error the rows before the refused one are written.
        """
        written = self._keys(keys)
        cells = self._cells(values, len(written))
        if create_only:  # batches know no BPF_NOEXIST (kernel/bpf/syscall.c, generic_map_update_batch)
            return self._update_one_by_one(written, cells, BPF_NOEXIST)

        def call(first: int, count: c_uint32) -> int:
            data = written[first:].ctypes.data, cells[first:].ctypes.data
            return int(libbpf.library().bpf_map_update_batch(self.fd, *data, byref(count), None))

        done, error = self._run(call, len(written))
        if error is None:
            return None
        if error.errno in NO_BATCH:
            return self._update_one_by_one(written[done:], cells[done:], BPF_ANY)
        raise self._error("cannot be written", error) from None

    def _update_one_by_one(self, keys: Array, cells: Array, flags: int) -> None:
        call = libbpf.library().bpf_map_update_elem
        for row in range(len(keys)):
            result = call(self.fd, keys[row:].ctypes.data, cells[row:].ctypes.data, flags)
            if result < 0:
                raise self._error("cannot be written", OSError(-result, os.strerror(-result)))

    def delete(self, keys: npt.ArrayLike) -> int:
        """Deletes rows; one that is not there is no error. Returns how many were deleted."""
        unwanted = self._keys(keys)
        position = deleted = 0

        def call(first: int, count: c_uint32) -> int:
            data = unwanted[position + first :].ctypes.data
            return int(libbpf.library().bpf_map_delete_batch(self.fd, data, byref(count), None))

        while position < len(unwanted):
            done, error = self._run(call, len(unwanted) - position)
            position += done
            deleted += done
            if error is None:
                break
            if error.errno in NO_BATCH:
                return deleted + self._delete_one_by_one(unwanted[position:])
            if error.errno != errno.ENOENT:
                raise self._error("cannot be deleted from", error) from None
            position += 1
        return deleted

    def _delete_one_by_one(self, keys: Array) -> int:
        deleted = 0
        for row in range(len(keys)):
            result = libbpf.library().bpf_map_delete_elem(self.fd, keys[row:].ctypes.data)
            if result < 0 and result != -errno.ENOENT:
                raise self._error("cannot be deleted from", OSError(-result, os.strerror(-result)))
            deleted += result == 0
        return deleted

    # ---- helpers ----

    def _run(self, call: Batch, total: int) -> tuple[int, OSError | None]:
        """Runs a batch call over `total` rows. Returns how many were done, and what stopped it before the
        end.
        """
        done = 0
        while done < total:
            count = c_uint32(total - done)
            result = call(done, count)
            if result < 0:
                # A kernel that refuses the call as such leaves the count as it was.
                partly = 0 if -result in NO_BATCH else count.value
                return done + partly, OSError(-result, os.strerror(-result))
            done += count.value
        return done, None

    def _keys(self, keys: npt.ArrayLike) -> Array:
        return np.ascontiguousarray(np.atleast_1d(np.asarray(keys, self.key_dtype)))

    def _cells(self, values: npt.ArrayLike, count: int) -> Array:
        """Values as the kernel takes them: (n, cpus) cells."""
        given = np.asarray(values, self.value_dtype.base)
        cells = np.zeros((count, self._cpus), self._cell)
        shape = (self._cpus, count) if self.per_cpu else (count,)
        given = given.reshape(shape + self.value_dtype.shape)
        cells["value"] = given.swapaxes(0, 1) if self.per_cpu else given[:, np.newaxis]
        return cells

    def _error(self, what: str, error: OSError) -> DatapathError:
        """The system's error number in terms of this table."""
        size = f"(max {self.max_entries})"
        if error.errno in (errno.E2BIG, errno.ENOSPC):
            if self.indexed:
                return DatapathError(f"table {self.name} has no such index {size}")
            return DatapathError(f"table {self.name} is full {size}")
        if error.errno == errno.EEXIST:
            return DatapathError(f"table {self.name} already has that row")
        if error.errno == errno.ENOMEM:
            return DatapathError(f"table {self.name} {what}: the kernel has no memory for another row")
        return DatapathError(f"table {self.name} {what}: {os.strerror(error.errno or 0)}")


def read_layout(fd: int) -> MapLayout:
    """Layout of a map as the kernel keeps it, from the BTF it was created with."""
    info = bpf.map_info(fd)
    name = info.name.decode().removeprefix(VARIABLE)
    if info.type in UNTYPED:
        return untyped_layout(name, (info.type, info.map_flags, info.max_entries))
    if not info.btf_id:
        raise DatapathError(f"table {name} has no BTF: it was not made by clearway")
    with Btf.of_id(info.btf_id) as types:
        return map_layout(
            types,
            name=name,
            type_ids=(info.btf_key_type_id, info.btf_value_type_id),
            sizes=(info.key_size, info.value_size),
            shape=(info.type, info.map_flags, info.max_entries),
        )


def set_program(map_fd: int, index: int, program_fd: int) -> None:
    """Puts a program into a table of tail calls (BPF_MAP_TYPE_PROG_ARRAY)."""
    key, value = c_uint32(index), c_uint32(program_fd)
    bpf.check(libbpf.library().bpf_map_update_elem(map_fd, byref(key), byref(value), BPF_ANY), "stages")
