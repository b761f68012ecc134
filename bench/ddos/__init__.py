# SPDX-License-Identifier: Apache-2.0
"""DDoS defence: what it costs."""
