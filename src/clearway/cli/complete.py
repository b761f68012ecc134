# SPDX-License-Identifier: Apache-2.0
"""Names that the shell completes by asking the daemon. When anything goes wrong there is nothing to offer."""

from __future__ import annotations

import typer

from clearway.api.client import Client, RefusedError, UnreachableError
from clearway.instance import DEFAULT_NAME, InstanceError, find_instance

_PATIENCE = 0.5  # seconds; somebody waits with a finger on the tab key


def services(context: typer.Context, incomplete: str) -> list[str]:
    return _offer(context, ("services",), "services", "name", incomplete)


def endpoints(context: typer.Context, incomplete: str) -> list[str]:
    service = context.params.get("service")
    return _offer(context, ("endpoints",), "endpoints", "endpoint", incomplete, service=service)


def nats(context: typer.Context, incomplete: str) -> list[str]:
    return _offer(context, ("nat",), "nat", "name", incomplete)


def interfaces(context: typer.Context, incomplete: str) -> list[str]:
    return _offer(context, ("interfaces",), "interfaces", "name", incomplete)


def _offer(
    context: typer.Context, path: tuple[str, ...], kind: str, key: str, incomplete: str, **query: str | None
) -> list[str]:
    name = context.find_root().params.get("instance") or DEFAULT_NAME
    try:
        answer = Client(find_instance(name).socket, _PATIENCE).get(*path, **query)
    except (UnreachableError, RefusedError, InstanceError):
        return []
    return [item[key] for item in answer[kind] if item[key].startswith(incomplete)]
