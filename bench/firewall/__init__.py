# SPDX-License-Identifier: Apache-2.0
"""The firewall: what rules cost a first packet, what they do not cost the others, and Linux beside it."""
