# SPDX-License-Identifier: Apache-2.0
"""clearway: an eBPF fast path over Linux networking, with Linux as the slow path."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when asked for: reading metadata would be a third of the CLI's start."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  (late, for the reason above)

        return version("clearway")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
