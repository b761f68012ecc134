# SPDX-License-Identifier: Apache-2.0
"""Settings of Linux' conntrack under which it goes on with a TCP connection whose packets it has not seen.

While a connection is carried here, Linux keeps the sequence numbers and windows of the last packets that it
saw. What comes back to it then lies outside of them, and would be invalid (net/netfilter/
nf_conntrack_proto_tcp.c, tcp_in_window, and what nf_conntrack_tcp_packet says of resets). The flowtable of
nftables asks for the same, of single connections (net/netfilter/nft_flow_offload.c).
"""

from __future__ import annotations

from clearway.datapath import settings
from clearway.datapath.pins import Pins

LENIENT = (
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst",
)


def be_lenient(where: Pins) -> None:
    """Changes them in the caller's network namespace. OSError where they may not be changed."""
    for name in LENIENT:
        settings.change(where, name, "1")
