# SPDX-License-Identifier: Apache-2.0
"""Writes docs/configuration.md from the models, so that the reference says what the program does.

tools/configuration_reference.py            writes it
tools/configuration_reference.py --check    fails when it is not what the models say (make lint)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clearway.model import Config, parse_config

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

Schema = dict[str, Any]
"""A JSON schema, or a part of one, as pydantic writes it."""

EXAMPLE = """\
interfaces:
  - {name: eth0, hook: auto}
services:
  - name: web
    address: 203.0.113.10
    port: 80
    protocol: tcp
    mode: nat
    algorithm: maglev
    endpoints:
      - {address: 10.0.0.2, port: 8080, weight: 1}
      - {address: 10.0.0.3, port: 8080, weight: 2}
nat:
  - {name: out, source: 10.0.0.0/8, interface: eth0, masquerade: true}
firewall:
  default: accept
  sets: {office: [198.51.100.0/24, "2001:db8:1::/48"]}
  rules:
    - {name: ssh, action: accept, protocol: tcp, source: "@office", destination_ports: 22}
    - {name: no-telnet, action: drop, protocol: tcp, destination_ports: [23, 2323-2330]}
conntrack: {max_flows: 1048576, timeouts: {tcp_established: 2h, udp: 60s}}
"""

HEAD = """\
<!-- Written by `make docs` from src/clearway/model: change it there. -->

# Configuration

A configuration is one YAML file, for `clearway run -c FILE`, `clearway plan FILE` and
`clearway apply FILE`; the HTTP API takes the same keys as JSON. It is checked as a whole before anything
is touched: unknown keys, values of another type, overlapping services, mixed address families and sizes
beyond a limit are refused, each with the path of the key, its line, and what to do.

```yaml
{example}```

A key without a default is required. `[]` stands for each item of a list. Values are written like this:

| value | for example |
|---|---|
| duration | `2h`, `1h30m`, `60s`, `500ms`, or a number of seconds; `100ms` to `10d` |
| ports | `1024-32767`, both included |
| addresses | `198.51.100.8/29` (all eight), `198.51.100.8-198.51.100.15`, `198.51.100.8` |
| IPv4 or IPv6 prefix | `10.0.0.0/8`, `"fd00::/8"`, or a single address |
| name | up to 63 letters, digits, dots, dashes and underscores |
| interface | `eth0`: the name of an interface, as the kernel has it |

In `{{...}}` and `[...]`, put IPv6 addresses into quotes.
"""

TAIL = """\
## What depends on the machine

Checked before anything is touched, by `clearway plan` and `clearway apply` alike:

- Interfaces of `nat` and `interfaces` must exist when they are named for the first time; one that goes away
  later is waited for.
- Ports that `masquerade` and `full-nat` translate to must not overlap the host's own local port range,
  `net.ipv4.ip_local_port_range`: the host could take the same port for itself. A pool may use any port.
- The sizes of tables in `limits` are those that the data path was loaded with. Other sizes show in a plan
  with `!`; they take effect after `clearway down` and a new `clearway run`. Until then, a configuration that
  does not fit the loaded ones is refused with the figure that it needs.
- The tables must fit into the memory that the machine has to spare (`MemAvailable`), besides those that are
  loaded; a flow table of another size stands beside the present one until all connections have moved. What
  does not fit is refused with what it needs, what there is, and the `max_flows` that would fit.

`clearway plan` also says how much kernel memory the tables take: when loaded, and when all of them are full.
"""


def value_text(schema: Schema) -> str:
    """What may be written for a key: "1 to 65535", "`tcp`, `udp`", "list", "duration"."""
    if "anyOf" in schema:
        return " or ".join(value_text(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return "list"
    if schema.get("type") == "object":
        return "mapping"
    if "$ref" in schema:
        return "mapping"
    if schema.get("type") == "boolean":
        return "`true`, `false`"
    if "minimum" in schema and "maximum" in schema:
        kind = f"{schema['title']}, " if schema["title"].islower() else ""
        return f"{kind}{schema['minimum']} to {schema['maximum']}"
    return str(schema.get("title", schema["type"]))


def default_text(default: object) -> str:
    """A default as it would stand in the file; that of a mapping is told by its own section."""
    if default and isinstance(default, dict):
        return "below"
    if default is None or default in ([], {}):
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def rows(properties: Schema, required: list[str], defaults: Schema) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, schema in properties.items():
        default = "" if key in required else default_text(defaults.get(key, schema.get("default")))
        meaning = schema.get("description", "").replace("|", "\\|")
        yield f"| `{key}` | {value_text(schema)} | {default} | {meaning} |"


def sections(path: str, schema: Schema, definitions: Schema, defaults: Schema) -> Iterator[str]:
    """The section of one mapping, then those of the mappings below it, in the order of the models."""
    yield f"## {f'`{path}`' if path else 'The file'}\n"
    yield schema["description"] + "\n"
    yield "\n".join(rows(schema["properties"], schema.get("required", []), defaults)) + "\n"
    for key, below in schema["properties"].items():
        kinds = [below.get("items", below), *below.get("anyOf", ())]
        reference = next((kind["$ref"] for kind in kinds if "$ref" in kind), None)
        if reference is not None:
            model = definitions[reference.rsplit("/", 1)[1]]
            name = f"{path}.{key}".removeprefix(".")
            if "items" in below:
                yield from sections(f"{name}[]", model, definitions, {})
            else:
                yield from sections(name, model, definitions, below.get("default") or {})


def reference() -> str:
    """The whole document. The example in it is parsed, so it is one that works."""
    parse_config(EXAMPLE, "example")
    schema = Config.model_json_schema(mode="validation")
    return "\n".join([HEAD.format(example=EXAMPLE), *sections("", schema, schema.get("$defs", {}), {}), TAIL])


def main() -> int:
    text = reference()
    if "--check" not in sys.argv[1:]:
        REFERENCE.write_text(text)
        return 0
    if not REFERENCE.exists() or REFERENCE.read_text() != text:
        print("clearway: docs/configuration.md is not what the models say: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
