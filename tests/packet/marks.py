# SPDX-License-Identifier: Apache-2.0
"""Parametrizations that several files share."""

from __future__ import annotations

import pytest

IPV4 = pytest.mark.parametrize("net", [4], indirect=True, ids=["ipv4"])
"""For what only IPv4 has."""
IPV6 = pytest.mark.parametrize("net", [6], indirect=True, ids=["ipv6"])
"""For what only IPv6 has."""
PROTOCOLS = pytest.mark.parametrize("proto", ["tcp", "udp"])
