# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: Linux and clearway side by side in one run. `make bench`, or `python -m bench` as root."""
