# SPDX-License-Identifier: Apache-2.0
"""How long it takes to find the first of many rules that a packet meets."""
