# SPDX-License-Identifier: Apache-2.0
"""The flow table under load: hits, new flows, ageing, reading, a flood. `make bench-flows`, or
`python -m bench.flows` as root.

Programs are measured by themselves, by BPF_PROG_TEST_RUN: a generator (bench/flows.bpf.c) writes a packet and
calls the data path's entry; what the generator takes with nothing behind it is taken off.
"""
