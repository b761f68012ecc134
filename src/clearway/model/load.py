# SPDX-License-Identifier: Apache-2.0
"""Configurations from files, text and requests, and back to text."""

from __future__ import annotations

from contextlib import suppress
from io import StringIO
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

from .config import Config
from .document import SIZE_MAX, quick_json, read_document
from .errors import ConfigError, Origin, Problem, shown
from .messages import problems_of


def load_config(path: Path | str) -> Config:
    """Read a configuration file. Raises ConfigError, with every problem, whatever is wrong with it."""
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            text = file.read(SIZE_MAX + 1)  # no more than it takes to see that it is too large
    except FileNotFoundError:
        raise _unreadable(
            source, "there is no such file", "check the path, or name another with -c"
        ) from None
    except IsADirectoryError:
        raise _unreadable(source, "is a directory", "give the file in it") from None
    except PermissionError:
        raise _unreadable(source, "may not be read", "check its permissions, or run as root") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _unreadable(source, f"cannot be read: {reason}", "check the path") from None
    return parse_config(text, source)


def parse_config(text: str | bytes, source: str = "configuration") -> Config:
    """Read a configuration from YAML text; `source` names it in errors.

    Raises ConfigError with every problem.
    """
    data = quick_json(text)
    if data is not None:
        with suppress(ConfigError):  # whose problems have no lines
            return _validate(data, Origin(source, {}))
    document = read_document(text, source)
    return _validate(document.data, document.origin)


def config_from_data(data: object, source: str = "request") -> Config:
    """Make a configuration of plain data, such as decoded JSON. Raises ConfigError with every problem."""
    return _validate(data, Origin(source, {}))


def to_data(config: Config, *, complete: bool = False) -> dict[str, object]:
    """Plain data (text, numbers, lists, mappings) that config_from_data takes back.

    Defaults are left out, so that it reads like what somebody would have written; `complete` keeps them.
    """
    return config.model_dump(mode="json", exclude_defaults=not complete, exclude_none=True)


def to_yaml(config: Config) -> str:
    """YAML text that parse_config takes back."""
    yaml = YAML(typ="rt")  # keeps the order of keys
    stream = StringIO()
    yaml.dump(to_data(config), stream)
    return stream.getvalue()


def _unreadable(source: str, what: str, fix: str) -> ConfigError:
    return ConfigError([Problem((source,), what, fix)], source)


def _validate(data: object, origin: Origin) -> Config:
    if not isinstance(data, dict):
        what = f"a mapping is needed, not {shown(data)}"
        raise origin.error([Problem((), what, f"write keys and values: {', '.join(Config.model_fields)}")])
    try:
        return Config.model_validate(data).read_from(origin)
    except ValidationError as error:
        raise origin.error(problems_of(error, Config)) from None
