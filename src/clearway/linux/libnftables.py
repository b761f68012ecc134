# SPDX-License-Identifier: Apache-2.0
"""The nftables ruleset as JSON, by the library that `nft` itself is made of (man libnftables-json)."""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any

NFT_CTX_OUTPUT_JSON = 1 << 4
NFT_CTX_OUTPUT_HANDLE = 1 << 3
LIBRARY = "libnftables.so.1"


class NftablesError(Exception):
    """The ruleset cannot be read or changed; one line."""


def available() -> bool:
    """Whether the library is on this machine."""
    try:
        _library()
    except NftablesError:
        return False
    return True


def list_ruleset(tables: Iterable[str] | None = None) -> str:
    """What `nft -j -a list ruleset` prints, of the calling thread's network namespace: of these tables, named
    with their families, or of all. NftablesError.
    """
    if tables is None:
        return _run("list ruleset", NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_HANDLE)
    listed = _run(
        "".join(f"list table {table}\n" for table in tables), NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_HANDLE
    )
    return json.dumps({"nftables": [one for document in _documents(listed) for one in document["nftables"]]})


def run_commands(commands: str) -> None:
    """What `nft -f` does with a file of these. NftablesError, and nothing is done."""
    _run(commands, 0)


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """Of several commands, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        yield document
        at = len(text) - len(text[at:].lstrip())


def _run(commands: str, flags: int) -> str:
    """What the library has to say to these."""
    library = _library()
    context = library.nft_ctx_new(0)
    if not context:
        raise NftablesError(f"{LIBRARY} gives no context")
    try:
        library.nft_ctx_output_set_flags(context, flags)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_buffer(context, commands.encode()):
            said = library.nft_ctx_get_error_buffer(context) or b""
            raise NftablesError(" | ".join(said.decode("utf-8", "replace").split("\n")).strip(" |"))
        return bytes(library.nft_ctx_get_output_buffer(context) or b"").decode("utf-8", "replace")
    finally:
        library.nft_ctx_free(context)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise NftablesError(f"{LIBRARY} is missing (Debian: libnftables1)") from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library
