# SPDX-License-Identifier: Apache-2.0
"""What `clearway lab up|down|shell` do."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from clearway.lab.lab import Lab
from clearway.lab.namespace import Namespace, existing
from clearway.lab.run import ENVIRONMENT, Interrupted, LabError, interruptible
from clearway.lab.topology import SERVER_PORT

DEFAULT_NAME = "lab"


@dataclass(frozen=True)
class HostSummary:
    """A host as a user needs it: where it is and how it is reached."""

    host: str
    namespace: str
    interface: str  # of the node, towards this host
    ipv4: str
    ipv6: str


@dataclass(frozen=True)
class Summary:
    """What `clearway lab up` built."""

    name: str
    node: str
    service_ipv4: str
    service_ipv6: str
    hosts: tuple[HostSummary, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def text(self) -> str:
        lines = [f"lab {self.name} is up; the node is {self.node}"]
        lines += [
            f"  {host.host:<8} {host.namespace:<22} node's {host.interface:<8} {host.ipv4:<15} {host.ipv6}"
            for host in self.hosts
        ]
        lines.append(
            f"service addresses {self.service_ipv4} and {self.service_ipv6}; servers listen on {SERVER_PORT}"
        )
        which = "" if self.name == DEFAULT_NAME else f" --name {self.name}"
        lines.append(f"try: clearway lab shell{which} node")
        return "\n".join(lines)


def up(name: str = DEFAULT_NAME) -> Summary:
    """Build a lab that stays until `down`.

    LabError when it cannot be built or is up already. A signal takes it down again: KeyboardInterrupt.
    """
    lab = Lab(name)
    try:
        with interruptible():
            lab.up(keep=True)
    except Interrupted as error:
        raise KeyboardInterrupt from error
    hosts = (
        HostSummary(host.name, host.ns.name, host.plan.interface, host.address(4), host.address(6))
        for host in lab.hosts.values()
    )
    return Summary(name, lab.node.name, lab.vip(4), lab.vip(6), tuple(hosts))


def down(name: str = DEFAULT_NAME) -> bool:
    """Remove a lab, with everything that runs in it. False: there was none of that name."""
    return Lab(name).down()


def shell(name: str = DEFAULT_NAME, host: str = "node") -> NoReturn:
    """Become a shell inside `host`: the node or any host of the lab. LabError when it is not there."""
    lab = Lab(name)
    namespace = Namespace(f"{lab.prefix}{host}")
    if not namespace.path.exists():
        hosts = [found.name.removeprefix(lab.prefix) for found in existing(lab.prefix)]
        if not hosts:
            raise LabError(f"lab {name} is not up; start it: clearway lab up --name {name}")
        raise LabError(f"there is no {host} in lab {name}; its hosts: {', '.join(hosts)}")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH') or ENVIRONMENT['PATH']}",
        "PS1": f"{namespace.name}# ",
    }
    argv = namespace.argv(*_shell(lab, namespace, environment))
    os.execvpe(argv[0], argv, environment)  # noqa: S606  (no shell parses argv; the shell is what is started)


def _shell(lab: Lab, namespace: Namespace, environment: Mapping[str, str]) -> list[str]:
    """The user's shell. Bash is told again what its own files may have changed: the prompt and where this
    clearway is.
    """
    program = environment.get("SHELL") or "/bin/bash"
    if Path(program).name != "bash" or not lab.directory.is_dir():
        return [program]
    rcfile = lab.directory / f"{namespace.name}.bashrc"
    rcfile.write_text(
        "[ -f ~/.bashrc ] && . ~/.bashrc\n"
        f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n"
        f"unset PROMPT_COMMAND\nPS1={shlex.quote(environment['PS1'])}\n"
    )
    return [program, "--rcfile", str(rcfile)]
