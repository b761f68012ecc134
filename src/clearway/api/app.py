# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: what it offers is listed here, what it does is the daemon's business (control.py).

Every refusal has the same form, {"errors": [{"message": ...}]}: 400 for what was asked wrongly, 404 for what
is not there, 409 for what cannot be done now, 413 and 408 for requests that are too big or too slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from clearway import __version__
from clearway.api.control import Control, FilterError
from clearway.api.refusals import REQUEST, described, os_error
from clearway.api.views import (
    Endpoints,
    Errors,
    FirewallDecision,
    FirewallQuestion,
    FlowExplanation,
    FlowFilter,
    FlowQuestion,
    Interfaces,
    LinuxCounterViews,
    LinuxRules,
    Lists,
    Nats,
    Reasons,
    Rules,
    Services,
    StatusView,
)
from clearway.api.words import done, planned, warning_lines
from clearway.compiler import Plan
from clearway.datapath import DatapathError
from clearway.linux.netlink import NetlinkError
from clearway.model import (
    Config,
    ConfigError,
    Origin,
    add_endpoint,
    add_service,
    drain_endpoint,
    holds_ports,
    parse_config,
    parse_members,
    remove_endpoint,
    remove_service,
    replace_set,
    to_data,
)
from clearway.model.document import read_document

log = structlog.get_logger()


class TooBigError(Exception):
    """The body is bigger than a request may be."""


class TooSlowError(Exception):
    """The body did not arrive in time."""


REFUSED: dict[int | str, dict[str, Any]] = {400: {"model": Errors}, 409: {"model": Errors}}


def build_app(control: Control) -> FastAPI:
    """The application; `control` is what it drives."""
    app = FastAPI(
        title="clearway", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.include_router(_state_routes(control), prefix="/v1")
    app.include_router(_question_routes(control), prefix="/v1")
    app.include_router(_traffic_routes(control), prefix="/v1")
    app.include_router(_whole_routes(control), prefix="/v1", responses=REFUSED)
    app.include_router(_edit_routes(control), prefix="/v1", responses=REFUSED)
    for kind, answer in HANDLERS.items():
        app.add_exception_handler(kind, answer)
    return app


# ---- what is ----


def _state_routes(control: Control) -> APIRouter:
    """Answered without reading flows."""
    router = APIRouter(tags=["state"])

    @router.get("/status")
    def status() -> StatusView:
        return control.status()

    @router.get("/config")
    def config() -> dict[str, Any]:
        """The configuration in force, complete with defaults."""
        return to_data(control.config(), complete=True)

    @router.get("/interfaces")
    def interfaces() -> Interfaces:
        return control.interfaces()

    @router.get("/rules")
    def rules() -> Rules:
        """The firewall's, in their order, and its default."""
        return control.rules()

    @router.get("/lists")
    def lists() -> Lists:
        """Blocklists and allowlists, and what they have decided about."""
        return control.lists()

    @router.get("/rules/linux")
    def linux_counters() -> LinuxCounterViews:
        """What Linux' rules have counted, with what was carried around them."""
        return control.linux_counters()

    @router.get("/reasons")
    def reasons() -> Reasons:
        return control.reasons()

    return router


def _question_routes(control: Control) -> APIRouter:
    """What would become of a packet or a connection, and why."""
    router = APIRouter(tags=["state"])

    @router.post("/firewall/test")
    def ask_firewall(question: FirewallQuestion) -> FirewallDecision:
        """Which rule decides about a packet."""
        return control.ask_firewall(question)

    @router.post("/explain/flow")
    def explain_flow(question: FlowQuestion) -> FlowExplanation:
        """Whether a connection is carried by the fast path, and if not, why."""
        return control.explain_flow(question)

    @router.get("/explain/rules")
    def explain_rules() -> LinuxRules:
        """What the rules of Linux mean for the fast path."""
        return control.explain_rules()

    return router


def _traffic_routes(control: Control) -> APIRouter:
    """Answered from the flow table."""
    router = APIRouter(tags=["traffic"])

    @router.get("/services")
    def services() -> Services:
        return control.services()

    @router.get("/endpoints")
    def endpoints(service: str | None = None) -> Endpoints:
        return control.endpoints(service)

    @router.get("/nat")
    def nat() -> Nats:
        return control.nat()

    @router.get("/flows")
    def flows(
        service: str | None = None,
        endpoint: str | None = None,
        nat: str | None = None,
        address: str | None = None,
        protocol: str | None = None,
        state: str | None = None,
        owner: str | None = None,
        limit: int | None = None,
    ) -> Response:
        """{"matched": .., "total": .., "flows": [..]}, those that carried most first, sent as it is made."""
        if limit is not None and limit < 0:
            raise FilterError(f"limit {limit} is negative; leave it out for all flows")
        wanted = FlowFilter(
            service=service,
            endpoint=endpoint,
            nat=nat,
            address=address,
            protocol=protocol,
            state=state,
            owner=owner,
            limit=limit,
        )
        return StreamingResponse(control.flows(wanted), media_type="application/json")

    @router.get("/flows/ended")
    async def ended() -> Response:
        """Connections as they end, a line of JSON each, until the client goes; an empty line a second."""
        return StreamingResponse(await control.ended(), media_type="application/jsonl")

    @router.get("/firewall/log")
    async def events() -> Response:
        """Decisions of firewall rules that log, likewise."""
        return StreamingResponse(await control.events(), media_type="application/jsonl")

    return router


# ---- what changes ----


def _whole_routes(control: Control) -> APIRouter:
    """Whole configurations, as YAML or JSON, and the daemon as such."""
    router = APIRouter(tags=["configuration"])

    @router.post("/plan")
    async def plan(request: Request, source: str = REQUEST) -> dict[str, Any]:
        """What applying the configuration in the body would change; nothing is touched."""
        desired = await asyncio.to_thread(parse_config, await request.body(), source)
        plan = await control.plan(desired)
        warnings = [*control.warnings(desired), *plan.warnings]
        return {**plan.to_dict(), "warnings": warnings, "text": planned(plan, desired, warnings)}

    @router.post("/apply")
    async def apply(request: Request, source: str = REQUEST) -> dict[str, Any]:
        """Put the configuration in the body in force: all of it, or nothing."""
        desired = await asyncio.to_thread(parse_config, await request.body(), source)
        return _applied(await control.change(lambda _running: desired), control.warnings(desired))

    @router.post("/reload")
    async def reload() -> dict[str, Any]:
        """Take the configuration file anew."""
        plan = await control.reload()
        applied = _applied(plan, control.warnings(control.config())) if plan else {}
        return {"reloaded": plan is not None, **applied}

    @router.post("/down")
    async def down() -> Response:
        """Detach everything, remove every pin, and end the daemon."""
        await control.remove()
        return JSONResponse({"removed": True}, background=BackgroundTask(control.stop))

    return router


def _edit_routes(control: Control) -> APIRouter:
    """Single services, endpoints and sets, in the form that they have in the configuration."""
    router = APIRouter(tags=["configuration"])

    async def changed(edit: Callable[[Config], Config]) -> dict[str, Any]:
        # What is wrong with the result is the request's fault, not that of the file it began with.
        unnamed = Origin(REQUEST, {})
        plan = await control.change(lambda config: edit(config.read_from(unnamed)))
        return _applied(plan, control.warnings(control.config()))

    @router.post("/services")
    async def service_add(request: Request) -> dict[str, Any]:
        data = await _object(request)
        return await changed(lambda config: add_service(config, data))

    @router.delete("/services/{service}")
    async def service_remove(service: str) -> dict[str, Any]:
        return await changed(lambda config: remove_service(config, service))

    @router.post("/services/{service}/endpoints")
    async def endpoint_add(service: str, request: Request) -> dict[str, Any]:
        data = await _object(request)
        return await changed(lambda config: add_endpoint(config, service, data))

    @router.delete("/services/{service}/endpoints/{endpoint}")
    async def endpoint_remove(service: str, endpoint: str) -> dict[str, Any]:
        return await changed(lambda config: remove_endpoint(config, service, endpoint))

    @router.put("/firewall/sets/{name}")
    async def set_replace(name: str, request: Request, source: str = REQUEST) -> dict[str, Any]:
        """Put what is in the body, a prefix or a port (or a range of them) on each line, into the set."""
        ports = holds_ports(control.config(), name)
        members = await asyncio.to_thread(parse_members, await request.body(), source, ports)
        return await changed(lambda config: replace_set(config, name, members))

    @router.post("/services/{service}/endpoints/{endpoint}/drain")
    async def endpoint_drain(service: str, endpoint: str, drain: bool = True) -> dict[str, Any]:
        """No new connections for the endpoint from now on; with drain=false it gets them again."""
        return await changed(lambda config: drain_endpoint(config, service, endpoint, drain))

    return router


def _applied(plan: Plan, warnings: list[str]) -> dict[str, Any]:
    warnings = [*warnings, *plan.warnings]
    lines = [line for change in plan.changes for line in change.lines()]
    text = "\n".join([*lines, f"applied: {done(plan)}", *warning_lines(warnings)])
    return {**plan.to_dict(), "summary": done(plan), "warnings": warnings, "text": text}


async def _object(request: Request) -> dict[str, object]:
    """The body as an object: JSON, or YAML for people who type it."""
    body = await request.body()
    data = read_document(body, REQUEST).data if body.strip() else None
    if not isinstance(data, dict):
        raise HTTPException(HTTPStatus.BAD_REQUEST, 'the body has to be an object, {"key": value, ...}')
    return data


# ---- what is refused ----


def refusal(status: int, *errors: dict[str, Any]) -> JSONResponse:
    # Of a body that was given up, the rest may still be on its way: nothing can follow it.
    given_up = status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT)
    headers = {"Connection": "close"} if given_up else None
    return JSONResponse({"errors": list(errors)}, status_code=int(status), headers=headers)


def _on_config_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ConfigError)
    return refusal(HTTPStatus.BAD_REQUEST, *described(error))


def _on_bad_filter(_request: Request, error: Exception) -> Response:
    return refusal(HTTPStatus.BAD_REQUEST, {"message": str(error)})


def _on_impossible(_request: Request, error: Exception) -> Response:
    return refusal(HTTPStatus.CONFLICT, {"message": str(error)})


def _on_os_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    return refusal(HTTPStatus.CONFLICT, {"message": os_error(error)})


def _on_too_big(_request: Request, error: Exception) -> Response:
    return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"message": str(error)})


def _on_too_slow(_request: Request, error: Exception) -> Response:
    return refusal(HTTPStatus.REQUEST_TIMEOUT, {"message": str(error)})


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"there is no {request.url.path}; /openapi.json lists what there is"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not know {request.method}; /openapi.json lists what it knows"
    return refusal(error.status_code, {"message": message})


def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [(".".join(map(str, problem["loc"][1:])), problem["msg"]) for problem in error.errors()]
    return refusal(
        HTTPStatus.BAD_REQUEST, *({"message": f"{path}: {what}", "path": path} for path, what in problems)
    )


def _on_bug(_request: Request, error: Exception) -> Response:
    message = f"the daemon could not do that ({type(error).__name__}); its log says more"
    return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, {"message": message})


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    ConfigError: _on_config_error,
    FilterError: _on_bad_filter,
    DatapathError: _on_impossible,
    NetlinkError: _on_impossible,
    OSError: _on_os_error,
    TooBigError: _on_too_big,
    TooSlowError: _on_too_slow,
    HTTPException: _on_http_error,
    RequestValidationError: _on_invalid,
    Exception: _on_bug,
}
