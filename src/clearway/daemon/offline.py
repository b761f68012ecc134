# SPDX-License-Identifier: Apache-2.0
"""What can be done to a data path while no daemon looks after it."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from clearway import datapath
from clearway.compiler import HostFacts, Plan, compile_tables, plan_configs, plan_tables, require_memory
from clearway.daemon import advice, state
from clearway.daemon.apply import read_tables
from clearway.daemon.engine import hand_back
from clearway.daemon.honour import remove_table
from clearway.daemon.listfiles import ListFiles
from clearway.daemon.lock import DataPathLock
from clearway.datapath import Datapath
from clearway.instance import Instance
from clearway.linux import memory, namespace, neighbours, nftables, rtnetlink
from clearway.linux.netlink import NETLINK_ROUTE, Conversation
from clearway.model import Config


def plan(instance: Instance, desired: Config) -> Plan:
    """What a daemon started with this configuration would change in the kernel; everything, if there is
    nothing, or only what a daemon that was killed while it started has left.

    Raises ConfigError when it would refuse, DatapathError when what is there cannot be read.
    """
    with _where_it_lives(instance):
        if not Datapath.is_loaded(instance.name):
            facts = _facts(desired, None)
            return plan_configs(None, desired, facts, compile_tables(desired, facts))
        with Datapath.open(instance.name) as there:
            facts = replace(_facts(desired, there.sizes()), flows=there.most_flows())
            require_memory(desired, facts.memory_bytes, loaded=facts.sizes, cpus=facts.cpus)
            running = read_tables(there)
            return plan_tables(running, compile_tables(desired, facts, running), desired, facts)


def warnings(instance: Instance, desired: Config) -> list[str]:
    """What this configuration allows and probably does not mean."""
    with _where_it_lives(instance), Conversation(NETLINK_ROUTE) as kernel:
        links = {link.ifindex: link for link in rtnetlink.links(kernel)}
        found = advice.about_nat(desired, links)
        return found + advice.about_firewall(
            desired, links, nftables.base_chains(instance.nft_table) if desired.firewall else ()
        )


def remove(instance: Instance) -> bool:
    """Detach everything and remove every trace; False when there was nothing.

    Raises LockedError when a daemon looks after it, DatapathError when something cannot be detached.
    """
    if not any(path.exists() for path in (instance.pin_dir, instance.run_dir, instance.state)):
        return False
    with DataPathLock(instance):
        with _where_it_lives(instance), Conversation(NETLINK_ROUTE) as kernel:
            neighbours.release_all(kernel)
            datapath.remove(instance.name, hand_back)
            remove_table(instance.nft_table)
        instance.socket.unlink(missing_ok=True)
        state.remove(instance.state)
    return True


def _facts(desired: Config, sizes: datapath.Sizes | None) -> HostFacts:
    with Conversation(NETLINK_ROUTE) as kernel:
        interfaces = {link.name: link.ifindex for link in rtnetlink.links(kernel)}
    first, last = namespace.local_port_range()
    return HostFacts(
        first,
        last,
        interfaces,
        sizes,
        memory.possible_cpus(),
        memory.available_bytes(),
        lists=ListFiles().load(desired, lambda _path: True),
    )


def _where_it_lives(instance: Instance) -> contextlib.AbstractContextManager[None]:
    """The network namespace that the data path was in; this one when that is unknown, or gone."""
    with contextlib.suppress(state.StateError):
        stored = state.read(instance.state)
        place = namespace.find(stored.network_namespace) if stored else None
        if place is not None:
            return namespace.inside(place)
    return contextlib.nullcontext()
