# SPDX-License-Identifier: Apache-2.0
"""`clearway down`: the machine is as it was before."""

from __future__ import annotations

import pytest

from clearway.lab import Lab
from clearway.lab.daemon import traces
from clearway.lab.measure import distribution
from tests.net.configuration import standard
from tests.net.node_state import node_state


def test_down_leaves_no_trace(lab: Lab, hook: str) -> None:
    before = node_state(lab)
    with lab.daemon(standard(lab, hook)) as daemon:
        assert distribution(lab.client.ns, f"http://{lab.vip_url(4)}/", 30).total() == 30
        assert node_state(lab) != before
        assert traces(daemon.instance) != []
        daemon.stop()
        daemon.cli("down")
        assert traces(daemon.instance) == []
        assert node_state(lab) == before
        with pytest.raises(ConnectionRefusedError):
            lab.client.ns.connect((lab.vip(4), 80))
        again = daemon.cli("down", check=False)
        assert again.returncode == 0
