# SPDX-License-Identifier: Apache-2.0
"""How a refused configuration is told, over the API and on the command line alike."""

from __future__ import annotations

from typing import Any

from clearway.model import ConfigError, Problem

PINS = "/sys/fs/bpf/"
DATA_PATH_GONE = "the data path is gone; run `clearway down`, then `clearway run`"
REQUEST = "request"  # what a configuration is called that came without a name


def described(error: ConfigError) -> list[dict[str, Any]]:
    """One entry a problem, each with a message that stands alone (views.ErrorView)."""
    return [{"message": _located(problem, error.source), **problem.to_dict()} for problem in error.problems]


def os_error(error: OSError) -> str:
    """One line for what the system refused. A pin that is not there: somebody has removed the data path."""
    if isinstance(error, FileNotFoundError) and str(error.filename or "").startswith(PINS):
        return DATA_PATH_GONE
    return " ".join(str(error).split())


def _located(problem: Problem, source: str) -> str:
    """A problem of a file begins with the file's name, as compilers do it; a request has none."""
    message = str(problem)
    if source == REQUEST:
        return message.removeprefix(f"{REQUEST}: ")
    of_all = problem.where == (source,)
    return source + message.removeprefix(problem.path) if of_all else f"{source}: {message}"
