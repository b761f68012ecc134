# SPDX-License-Identifier: Apache-2.0
"""The kernel side as typed objects: programs loaded, pinned and attached, tables as numpy arrays.

Layers, each above the former: libbpf (raw prototypes), bpf (bpf(2), checked), btf (types), objects and
tables, install and attach, datapath. Layouts come from the objects' BTF and are written nowhere in Python.
"""

from clearway.datapath.attach import Attachment
from clearway.datapath.calls import Clock, SweepResult
from clearway.datapath.datapath import Counter, Counters, Datapath, ProgramInfo, remove
from clearway.datapath.errors import DatapathError
from clearway.datapath.install import Sizes
from clearway.datapath.tables import Table

__all__ = [
    "Attachment",
    "Clock",
    "Counter",
    "Counters",
    "Datapath",
    "DatapathError",
    "ProgramInfo",
    "Sizes",
    "SweepResult",
    "Table",
    "remove",
]
