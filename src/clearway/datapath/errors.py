# SPDX-License-Identifier: Apache-2.0
"""The one exception that leaves this package for reasons a user can act on."""

from __future__ import annotations

import os
from pathlib import Path


class DatapathError(Exception):
    """What went wrong and what to do, in one line.

    `log_path` names the file with everything libbpf and the kernel's verifier said, where there is one.
    """

    def __init__(self, message: str, log_path: Path | None = None) -> None:
        super().__init__(message if log_path is None else f"{message} (whole log: {log_path})")
        self.log_path = log_path


def reason(error: OSError) -> str:
    """The system's words for an error number, without the "[Errno N]" and the path that str() adds."""
    return os.strerror(error.errno) if error.errno else str(error)
