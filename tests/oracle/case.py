# SPDX-License-Identifier: Apache-2.0
"""A case: rules, the connections there are, what happens one after the other. Plain data, kept as JSON."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

Protocol = Literal["tcp", "udp", "icmp"]
What = Literal[
    "syn",
    "syn-ack",
    "ack",
    "data",
    "again",  # the last data once more
    "outside",  # far outside of the window
    "fin",
    "rst",
    "unreachable",  # ICMP errors about the last packet that arrived at the sender of the error
    "too-big",
    "expired",
]
Shape = Literal["plain", "df", "options", "fragments", "backwards", "gso"]


@dataclass(frozen=True)
class Flow:
    """A connection. `segment`, `client`: who opens it (network.py); `server`: to which of SERVERS.

    `sport` and `dport` are ports; of ICMP, `sport` is the identifier of the echoes.
    """

    family: int
    protocol: Protocol
    segment: str
    client: int
    server: int
    sport: int
    dport: int


@dataclass(frozen=True)
class Send:
    """One packet of a flow; `back`: from the server. `size` is that of the payload in bytes.

    `flags` are letters of TCP flags that are set as well (RFC 9293: P, U, E, C).
    """

    flow: int
    what: What
    back: bool = False
    size: int = 0
    ttl: int = 64
    tos: int = 0
    flags: str = ""
    shape: Shape = "plain"

    def __str__(self) -> str:
        more = "".join(
            f" {name} {value}"
            for name, value, usual in (
                ("ttl", self.ttl, 64),
                ("tos", self.tos, 0),
                ("flags", self.flags, ""),
                ("shape", self.shape, "plain"),
            )
            if value != usual
        )
        return f"flow {self.flow} {'<-' if self.back else '->'} {self.what} {self.size} bytes{more}"


@dataclass(frozen=True)
class Run:
    """A command in the router's namespace, words as a shell's, and what it reads."""

    command: str
    stdin: str = ""

    @property
    def argv(self) -> list[str]:
        return shlex.split(self.command)

    @property
    def touches_network(self) -> bool:
        """Whether rules alone cannot be what it changes."""
        return self.argv[0] in ("ip", "sysctl")

    def __str__(self) -> str:
        return self.command + (f" <<< {shlex.quote(self.stdin)}" if self.stdin else "")


Step = Send | Run


@dataclass(frozen=True)
class Case:
    """`rules` have to be taken by the kernel; commands among `steps` may fail, but alike."""

    flows: tuple[Flow, ...]
    rules: tuple[Run, ...]
    steps: tuple[Step, ...]

    @property
    def commands(self) -> tuple[Run, ...]:
        return (*self.rules, *(step for step in self.steps if isinstance(step, Run)))

    def runs(self, tool: str) -> bool:
        """Whether any command of it is `tool`, or its -restore."""
        return any(run.argv[0].removesuffix("-restore") == tool for run in self.commands)

    @cached_property
    def ports(self) -> frozenset[int]:
        """Those of its flows, and all numbers that its commands name.

        Any other one has Linux chosen by chance: a translation would have given two connections one tuple.
        """
        named = re.findall(r"\d+", " ".join(f"{run.command} {run.stdin}" for run in self.commands))
        own = (port for flow in self.flows for port in (flow.sport, flow.dport))
        return frozenset([*own, *map(int, named)])

    def to_json(self) -> str:
        steps = [{"kind": "send" if isinstance(step, Send) else "run", **asdict(step)} for step in self.steps]
        whole = {
            "flows": [asdict(flow) for flow in self.flows],
            "rules": [asdict(run) for run in self.rules],
            "steps": steps,
        }
        return json.dumps(whole, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """What to_json() wrote; TypeError or KeyError for anything else."""
        whole = json.loads(text)
        return cls(
            tuple(Flow(**flow) for flow in whole["flows"]),
            tuple(Run(**run) for run in whole["rules"]),
            tuple(_step(step) for step in whole["steps"]),
        )


def _step(fields: dict[str, Any]) -> Step:
    kind = fields.pop("kind")
    return Send(**fields) if kind == "send" else Run(**fields)
