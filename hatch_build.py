# SPDX-License-Identifier: Apache-2.0
"""Build hook of hatchling: a wheel carries the compiled data path, so its users need no clang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompleteWheel(BuildHookInterface[BuilderConfig]):
    """Adds what does not lie in src/: the objects made from bpf/, and the configuration that the demo runs.

    An editable install needs neither: it takes what `make build` compiles, and examples/ where it is.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        script = Path(self.root) / "tools" / "build_bpf.py"
        if subprocess.run([sys.executable, str(script)], check=False).returncode:
            raise SystemExit("clearway: the data path was not compiled, so there is no wheel")
        build_data["force_include"]["examples/quickstart.yaml"] = "clearway/lab/quickstart.yaml"
