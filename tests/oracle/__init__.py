# SPDX-License-Identifier: Apache-2.0
"""The differential oracle: what clearway does must not be told from what Linux does alone.

    case (rules, flows, steps) --> play --+--> plain lab: Linux alone ----> frames, connections, --+--> alike?
                                          +--> fast lab: clearway beside -> counters, set members -+

Both labs are alike to the byte: names of interfaces, link addresses, sysctls. Whoever sits at their edges is
made of packet sockets, so no other stack adds a packet of its own, and nothing has to be waited for.
"""
