# SPDX-License-Identifier: Apache-2.0
"""A case as a shell script that anybody can run: the network, the rules, each step, and what to look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from tests.oracle import network
from tests.oracle.case import Case, Run
from tests.oracle.lab import configuration, frame_on
from tests.oracle.play import Played
from tests.oracle.traffic import Injection

HEAD = """\
#!/usr/bin/env bash
# {differences}
#
# Run it as root, once with `linux` and once with `{hook}`, and compare what they print. Frames are those that
# the hosts sent in Linux' lab; of other translations `python -m tests.oracle --replay` says more.
set -euo pipefail
hook=${{1:?linux, tc or xdp}}
clearway=${{CLEARWAY:-.venv/bin/clearway}}
name=cw-repro-$$ # so that both can run at once
router=$name-router hosts=$name-hosts
export CLEARWAY_INSTANCE=$name CLEARWAY_STATE_DIR=$(mktemp -d)
in_router() {{ nsenter --net=/run/netns/$router -- "$@"; }}
in_hosts() {{ nsenter --net=/run/netns/$hosts -- "$@"; }}
end() {{
    if [ "$hook" != linux ]; then in_router "$clearway" down || true; fi
    ip netns delete $hosts || true
    ip netns delete $router || true
    rm -r "$CLEARWAY_STATE_DIR"
}}
trap end EXIT
ip netns add $router
ip netns add $hosts
"""

WIRE = """\
import socket, struct, sys, time
# packets to send, as SEGMENT/GSO/FRAME; prints what arrives
def opened(segment, protocol):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.setsockopt(263, *((23, 1) if protocol else (15, 1)))  # PACKET_IGNORE_OUTGOING, PACKET_VNET_HDR
    wire.bind((segment, protocol))
    wire.setblocking(False)
    return wire
wires = {segment: opened(segment, 3) for segment in ("lan0", "lan1", "wan0", "wan1")}
for word in sys.argv[1:]:
    segment, gso, text = word.split("/")
    frame, six = bytes.fromhex(text), text[24:28] == "86dd"
    start = 54 if six else 34
    header = struct.pack("=BBHHHH", 1, 4 if six else 1, start + 20, int(gso), start, 16)
    header = bytes(10) if gso == "0" else header
    try:
        opened(segment, 0).send(header + frame)
    except OSError as error:
        print(f"not sent on {segment}: {error}")
time.sleep(0.1)
for segment, wire in wires.items():
    while True:
        try:
            frame = wire.recv(65536)
        except BlockingIOError:
            break
        if frame[12:14] in (b"\\x08\\x00", b"\\x86\\xdd") and not frame[0] & 1:
            print(f"{segment} gets {frame.hex()}")
"""

DAEMON = """\
if [ "$hook" != linux ]; then
    echo {configuration} | sed "s/HOOK/$hook/g" >"$CLEARWAY_STATE_DIR/clearway.yaml"
    in_router "$clearway" run -c "$CLEARWAY_STATE_DIR/clearway.yaml" >"$CLEARWAY_STATE_DIR/log" 2>&1 &
    until in_router "$clearway" status >/dev/null 2>&1; do sleep 0.2; done
fi
"""

LOOK = """\
echo "== connections"; in_router conntrack -L -o extended 2>/dev/null | sort
echo "== nftables"; in_router nft list ruleset
"""


def script(case: Case, played: Played, hook: str) -> str:
    """`played`: as far as it was played."""
    return "".join(_parts(case, played, hook))


def _parts(case: Case, played: Played, hook: str) -> Iterator[str]:
    yield HEAD.format(differences="\n# ".join(played.differences), hook=hook)
    yield from _network(hook)
    yield f"cat >\"$CLEARWAY_STATE_DIR/wire.py\" <<'END'\n{WIRE}END\n"
    yield DAEMON.format(configuration=shlex.quote(configuration("HOOK")))
    yield "# ---- rules\n"
    for run in case.rules:
        yield _command(run)
    for number, (step, sent) in enumerate(zip(case.steps, played.sent, strict=False)):
        yield f"echo {shlex.quote(f'== step {number}: {step}')}\n"
        yield f"{_command(step).rstrip()} || echo failed\n" if isinstance(step, Run) else _sending(sent)
    yield LOOK
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        if case.runs(tool):
            yield f"in_router {tool}-save -c\n"


def _network(hook: str) -> Iterator[str]:
    for where, settings in (
        ("in_router", network.ROUTER_SETTINGS),
        ("in_hosts", network.HOSTS_SETTINGS),
    ):
        yield from _sysctls(where, settings)
    yield from (f"ip {line}\n" for line in network.links("$router", "$hosts"))
    for segment in network.SEGMENTS:
        yield f"in_hosts ethtool -K {segment} {' '.join(network.offloads(hook))} >/dev/null\n"
    yield from (f"ip -n $hosts {line}\n" for line in network.hosts_up())
    yield from (f"ip -n $router {line}\n" for line in network.links_up())
    for family in (4, 6):
        for line in network.addresses(family) + network.ways(family):
            yield f"ip -n $router -{family} {line}\n"


def _sysctls(where: str, settings: Mapping[str, str | int]) -> Iterator[str]:
    for name, value in settings.items():
        yield f"{where} sysctl -q -w net/{name}={shlex.quote(str(value))}\n"


def _command(run: Run) -> str:
    """What it reads is a here-document: it is there to be read by people, too."""
    if not run.stdin:
        return f"in_router {run.command}\n"
    return f"in_router {run.command} <<'END'\n{run.stdin}END\n"


def _sending(sent: Sequence[Injection]) -> str:
    words = [f"{one.segment}/{one.gso}/{frame_on(one.segment, one.packet).hex()}" for one in sent]
    return f'in_hosts python3 "$CLEARWAY_STATE_DIR/wire.py" {" ".join(words)}\n'
