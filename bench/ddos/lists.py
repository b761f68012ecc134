# SPDX-License-Identifier: Apache-2.0
"""What lists of prefixes cost: packets whose source is in none, those that are dropped, and loading them."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.firewall.frames import frames_of
from bench.firewall.replay import Replay
from bench.flows.node import FRONT, ROUTER, Node, device_mac, neighbour_mac
from bench.flows.traffic import EMPTY
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from clearway.compiler import Tables, compile_tables
from clearway.daemon.listfiles import ListFiles
from clearway.model import config_from_data

Array = npt.NDArray[Any]

FAMILIES, HOOKS = (4, 6), ("xdp", "tc")
ENTRIES = 1_000_000
PACKETS = 1 << 17
SOURCES = (1 << 8, PACKETS)
"""So many take turns: what is looked at for few of them stays in a CPU's own caches, for many it does not."""
ROUNDS = 11
LOADS = 5
UDP, PORTS = 17, 40000 << 16 | 4000
DESTINATION = {4: "10.0.0.11", 6: "fd00:a::b"}

TIME = "program time above an empty program's"
MORE = "more for each packet that is not dropped"
LOADING = "from a file to the data path"
UNLISTED_NS, LISTED_NS, DROP_NS, LOAD_S = 40, 200, 40, 3.0


def measure(node: Node, report: Report, progress: Progress, cpu: int) -> None:
    source = np.random.default_rng(1)
    with TemporaryDirectory() as directory:
        for family in FAMILIES:
            listed = _addresses(source, family, ENTRIES, 0)
            file = Path(directory, f"ipv{family}.txt")
            file.write_text("\n".join(_texts(listed, family)))
            listed_tables = _load(node, file, family, report, progress)
            packets = {
                True: listed[source.permutation(ENTRIES)[:PACKETS]],
                False: _addresses(source, family, PACKETS, 1),
            }
            for hook in HOOKS:
                with progress.step(f"lists, IPv{family}, {hook}"):
                    _packets(node, hook, family, listed_tables, packets, report, cpu)


def _addresses(source: np.random.Generator, family: int, count: int, last: int) -> Array:
    """(n, 2) words; none twice, none in two calls with another last bit."""
    words = np.zeros((count, 2), np.uint64)
    if family == 4:  # 1.0.0.0 to 8.255.255.255
        chosen = source.permutation(1 << 26)[:count].astype(np.uint64)
        words[:, 0] = (chosen << np.uint64(1) | np.uint64(last)) + np.uint64(1 << 24)
    else:
        words[:, 0] = np.uint64(0x2A00 << 48) | source.integers(0, 1 << 52, count).astype(np.uint64)
        words[:, 1] = source.integers(0, 1 << 62, count).astype(np.uint64) << np.uint64(1) | np.uint64(last)
    return words


def _texts(addresses: Array, family: int) -> list[str]:
    if family == 4:
        return [str(IPv4Address(one)) for one in addresses[:, 0].tolist()]
    return [str(IPv6Address(upper << 64 | lower)) for upper, lower in addresses.tolist()]


def _config(files: list[str]) -> Any:
    lists = [{"name": f"list-{number}", "file": file} for number, file in enumerate(files)]
    return config_from_data({"interfaces": [], "scrub": {"blocklists": lists}})


def _loaded(node: Node, file: Path) -> Tables:
    config = _config([str(file)])
    facts = replace(node.facts(), lists=ListFiles().load(config, lambda _path: True))
    return compile_tables(config, facts, node.tables)


def _load(node: Node, file: Path, family: int, report: Report, progress: Progress) -> Tables:
    """As the daemon does: read, compile, exchange."""
    times = []
    with progress.step(f"loading {ENTRIES:,} prefixes of IPv{family}"):
        for _ in range(LOADS):
            node.put(Tables())
            began = time.perf_counter()
            tables = _loaded(node, file)
            node.put(tables)
            times.append(time.perf_counter() - began)
    assert tables.scrub is not None
    case = f"IPv{family}, {ENTRIES:,} entries"
    report.add(LOADING, "s", {case: times})
    report.add("memory of the list", "bytes", {case: [tables.scrub.bytes]})
    report.expect_at_most(case, LOADING, LOAD_S)
    return tables


def _packets(
    node: Node,
    hook: str,
    family: int,
    tables: Tables,
    packets: dict[bool, Array],
    report: Report,
    cpu: int,
) -> None:
    """With the lists and without, which take turns. packets: of sources that are listed, and of others."""
    none = node.compile(_config([]))
    cases = {
        (words, sources): (wanted, packets[listed][:sources], reason)
        for sources in SOURCES
        for words, wanted, listed, reason in (
            ("not listed, no list", none, False, "punt_not_ours"),
            ("not listed", tables, False, "punt_not_ours"),
            ("listed", tables, True, "drop_blocklist"),
        )
    }
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    with Replay(node, hook, PACKETS) as replay:
        for _ in range(ROUNDS):
            for case, (wanted, addresses, reason) in cases.items():
                node.put(wanted)
                replay.give(_frames(addresses, family))
                with alone_on(cpu):
                    empty = replay.send(PACKETS, EMPTY)
                    times[case].append(float(replay.burst(PACKETS, reason) - empty))
    for sources in SOURCES:
        where = f"IPv{family}, {hook}, {sources:,} sources"
        found = {words: times[words, sources] for words in ("not listed, no list", "not listed", "listed")}
        report.add(TIME, "ns", {f"{where}, {words}": samples for words, samples in found.items()})
        pairs = zip(found["not listed"], found["not listed, no list"], strict=True)
        report.add(MORE, "ns", {where: [with_lists - without for with_lists, without in pairs]})
        report.expect_at_most(where, MORE, UNLISTED_NS)
        report.expect_at_most(f"{where}, listed", TIME, LISTED_NS)
    if hook == "xdp":
        few = f"IPv{family}, {hook}, {min(SOURCES):,} sources, listed"
        report.expect_at_most(few, TIME, DROP_NS)


def _frames(addresses: Array, family: int) -> Array:
    words = np.zeros((len(addresses), 7), np.uint64)
    words[:, :2] = addresses
    if family == 4:
        words[:, 2] = int(IPv4Address(DESTINATION[4]))
    else:
        whole = int(IPv6Address(DESTINATION[6]))
        words[:, 2], words[:, 3] = whole >> 64, whole & (1 << 64) - 1
    words[:, 4] = PORTS << 32 | UDP << 24
    return frames_of(words, family, neighbour_mac(FRONT, ROUTER), device_mac(FRONT))
