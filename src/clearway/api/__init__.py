# SPDX-License-Identifier: Apache-2.0
"""HTTP over a unix socket: what the daemon offers, and the client that the command line uses."""
