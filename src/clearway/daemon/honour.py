# SPDX-License-Identifier: Apache-2.0
"""What Linux needs to honour its own rules for clearway's services and NAT: a table of nftables by which it
balances and translates what these rules keep from the data path (compiler/nft_table.py).

That table changes the generation of the ruleset, and no rule of anybody else. So the data path is told of the
generation to come before it is changed, and goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from clearway.compiler import Tables
from clearway.compiler.nft_table import FAMILIES, NftTable, nft_tables, removal
from clearway.datapath import Datapath
from clearway.linux import nftables
from clearway.linux.namespace import local_port_range
from clearway.linux.nft import NftablesError, run_commands

log = structlog.get_logger()


@dataclass(frozen=True)
class Claims:
    """What clearway's own configuration claims. `ports`: the interfaces that packets are taken from."""

    tables: Tables = field(default_factory=Tables)
    ports: tuple[str, ...] = ()

    @property
    def honours(self) -> bool:
        services, nats = self.tables.services, self.tables.nats
        return not (all(row.bypass for row in services) and all(row.bypass for row in nats))


class Wanted:
    """What Linux is to have, made anew when something that it depends on has changed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made_of: tuple[object, ...] = ()
        self._made: Mapping[int, NftTable] = {}

    def of(
        self, claims: Claims, interfaces: Mapping[int, str], families: frozenset[int]
    ) -> Mapping[int, NftTable]:
        """interfaces: names by ifindex. families: those in which there are rules."""
        made_of = (claims, interfaces, families, local_port_range())
        if made_of != self._made_of:
            made = (
                nft_tables(claims.tables, self._name, interfaces, claims.ports, local_port_range())
                if families
                else {}
            )
            self._made = {family: table for family, table in made.items() if family in families}
            self._made_of = made_of
        return self._made


class LinuxTable:
    """The table of one instance, in both families. Not for two threads at once."""

    def __init__(self, datapath: Datapath, name: str) -> None:
        self.datapath = datapath
        self.name = name
        self.made: Mapping[int, NftTable] = {}
        self._known = False  # what there is, is what was made here
        self._generation = 0  # that it was last seen in

    def look(self) -> None:
        """Somebody may have flushed the ruleset, and this table with it: then Linux has nothing to go by."""
        if self._known and not nftables.has_tables(self._names(self.made)):
            self._known = False
            self.datapath.set_table(False)

    def bring(self, wanted: Mapping[int, NftTable], known: int) -> int | None:
        """Make Linux have these. The generation that the ruleset has then, if that was all that has changed
        it since the one that is known; None when others have changed it as well. Raises NftablesError and
        NetlinkError.
        """
        before = nftables.generation()
        if before != known:
            return None
        if self._known and wanted == self.made and before == self._generation:
            return before
        self.look()
        commands = self._commands(wanted)
        if not commands:
            self.made, self._known, self._generation = wanted, True, before
            self.datapath.set_table(bool(wanted))
            return before
        self.datapath.set_table(bool(wanted) and self._known)  # what is not there, or goes, is not relied on
        self.datapath.expect(before, before + 1)
        try:
            run_commands(commands)
        finally:
            after = nftables.generation()
            if after != before + 1:
                self.datapath.expect(before, before)
        self.made, self._known, self._generation = wanted, True, after
        self.datapath.set_table(bool(wanted))
        log.info(
            "Linux balances and translates what its rules keep",
            services=sum(len(table.services) for table in wanted.values()),
            generation=after,
        )
        return after if after == before + 1 else None

    def _names(self, tables: Mapping[int, NftTable]) -> list[str]:
        return [f"{table.family} {self.name}" for table in tables.values()]

    def _commands(self, wanted: Mapping[int, NftTable]) -> str:
        found = []
        for family, keyword in FAMILIES.items():
            made = self.made.get(family) if self._known else None
            table = wanted.get(family)
            if table is not None and (not self._known or table != made):
                known = frozenset() if made is None else frozenset(made.services)
                found.append(table.commands(known if self._known else None))
            elif table is None and (made is not None or self._there(keyword)):
                found.append(f"add table {keyword} {self.name}\ndelete table {keyword} {self.name}\n")
        return "".join(found)

    def _there(self, keyword: str) -> bool:
        return not self._known and nftables.has_tables([f"{keyword} {self.name}"])


def remove_table(name: str) -> None:
    """Whatever there is of it goes."""
    try:
        if any(nftables.has_tables([f"{keyword} {name}"]) for keyword in FAMILIES.values()):
            run_commands(removal(name))
    except NftablesError as error:
        log.warning("clearway's table of nftables could not be removed", table=name, why=str(error))
