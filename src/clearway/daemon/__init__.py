# SPDX-License-Identifier: Apache-2.0
"""The daemon: keeps the data path as the configuration says, whatever happens around it."""
