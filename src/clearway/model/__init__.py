# SPDX-License-Identifier: Apache-2.0
"""What the user can say: models of the configuration file, the API and the commands. Needs no kernel."""

from .config import (
    Algorithm,
    Config,
    Conntrack,
    Endpoint,
    Hook,
    Interface,
    Limits,
    Midstream,
    Mode,
    Nat,
    Protocol,
    Service,
    Timeouts,
    WhenFull,
)
from .edit import (
    add_endpoint,
    add_service,
    drain_endpoint,
    holds_ports,
    parse_members,
    remove_endpoint,
    remove_service,
    replace_set,
)
from .errors import ConfigError, Origin, Problem
from .firewall import Action, Direction, Firewall, FirewallRule
from .firewall_values import SetName, TcpFlags
from .load import config_from_data, load_config, parse_config, to_data, to_yaml
from .prefix_list import ListContent, read_list
from .prefixes import Prefixes
from .scrub import PrefixList, Scrub
from .values import AddressRange, IPAddress, IPNetwork, PortRange, format_duration, host_port

__all__ = [
    "Action",
    "AddressRange",
    "Algorithm",
    "Config",
    "ConfigError",
    "Conntrack",
    "Direction",
    "Endpoint",
    "Firewall",
    "FirewallRule",
    "Hook",
    "IPAddress",
    "IPNetwork",
    "Interface",
    "Limits",
    "ListContent",
    "Midstream",
    "Mode",
    "Nat",
    "Origin",
    "PortRange",
    "PrefixList",
    "Prefixes",
    "Problem",
    "Protocol",
    "Scrub",
    "Service",
    "SetName",
    "TcpFlags",
    "Timeouts",
    "WhenFull",
    "add_endpoint",
    "add_service",
    "config_from_data",
    "drain_endpoint",
    "format_duration",
    "holds_ports",
    "host_port",
    "load_config",
    "parse_config",
    "parse_members",
    "read_list",
    "remove_endpoint",
    "remove_service",
    "replace_set",
    "to_data",
    "to_yaml",
]
