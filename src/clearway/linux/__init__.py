# SPDX-License-Identifier: Apache-2.0
"""The mirror: what Linux knows about links, addresses and neighbours, and how changes of it are noticed."""
