# SPDX-License-Identifier: Apache-2.0
"""A Linux router that nobody has configured clearway for, plain and with clearway on its interfaces."""
