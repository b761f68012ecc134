# SPDX-License-Identifier: Apache-2.0
"""What models are made of: the base of all, and the kinds of values that they have."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema

from .errors import Problem, refuse_all
from .values import (
    MAGLEV_SIZE_MAX,
    AddressRange,
    IPAddress,
    IPNetwork,
    PortRange,
    format_duration,
    parse_address,
    parse_duration,
    parse_interface_name,
    parse_maglev_size,
    parse_name,
    parse_pool,
    parse_port_range,
    parse_prefix,
    pool_text,
)

Name = Annotated[str, PlainValidator(parse_name), WithJsonSchema({"type": "string", "title": "name"})]
InterfaceName = Annotated[
    str, PlainValidator(parse_interface_name), WithJsonSchema({"type": "string", "title": "interface"})
]
Address = Annotated[
    IPAddress,
    PlainValidator(parse_address),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "IPv4 or IPv6 address"}),
]
Prefix = Annotated[
    IPNetwork,
    PlainValidator(parse_prefix),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "IPv4 or IPv6 prefix"}),
]
Pool = Annotated[
    AddressRange,
    PlainValidator(parse_pool),
    PlainSerializer(pool_text, when_used="json"),
    WithJsonSchema({"type": "string", "title": "addresses"}),
]
Ports = Annotated[
    PortRange,
    PlainValidator(parse_port_range),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "ports"}),
]
Duration = Annotated[
    int,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema({"type": "string", "title": "duration"}),
]
MaglevSize = Annotated[
    int,
    PlainValidator(parse_maglev_size),
    WithJsonSchema({"type": "integer", "title": "prime", "minimum": 2, "maximum": MAGLEV_SIZE_MAX}),
]
Port = Annotated[int, Field(ge=1, le=65535)]

Item = TypeVar("Item")
# Strict means that nothing is converted; a list for a tuple is all the same.
Several = Annotated[tuple[Item, ...], Field(strict=False)]


class Model(BaseModel):
    """Frozen and strict: unknown keys and values of another type are refused, never converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Checked = TypeVar("Checked", bound=Model)


def checked(model: Checked, problems: list[Problem]) -> Checked:
    if problems:
        raise refuse_all(problems)
    return model
