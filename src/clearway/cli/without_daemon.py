# SPDX-License-Identifier: Apache-2.0
"""Errors of what a command does itself, without a daemon. Imports everything, so import it late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clearway.api.refusals import described, os_error
from clearway.cli.common import CommandError, ExitCode
from clearway.daemon.lock import LockedError
from clearway.daemon.run import StartError
from clearway.datapath import DatapathError
from clearway.linux.netlink import NetlinkError
from clearway.model import ConfigError


@contextmanager
def refusals() -> Iterator[None]:
    """Whatever is refused inside becomes a CommandError, with the words that it came with."""
    try:
        yield
    except ConfigError as error:
        errors = described(error)
        raise CommandError(ExitCode.REFUSED, *(str(e["message"]) for e in errors), errors=errors) from error
    except LockedError as error:
        raise CommandError(ExitCode.LOCKED, str(error)) from error
    except PermissionError as error:
        raise CommandError(ExitCode.REFUSED, f"{error.filename or 'this'} needs root; try sudo") from error
    except OSError as error:
        raise CommandError(ExitCode.REFUSED, os_error(error)) from error
    except (DatapathError, NetlinkError, StartError) as error:
        raise CommandError(ExitCode.REFUSED, " ".join(str(error).split())) from error
