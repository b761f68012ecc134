/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a flow's next hop was resolved under. All counters that can make it stale only ever grow, so that
 * their sum changes when any of them does, and one word in the flow and one comparison on the hit path
 * are enough. */
#pragma once

/* clearway's configuration, the mirror, and, read from the kernel where it can be: routes and rules of both
 * families (rt_genid, fib6_sernum: include/net/netns/) and the nftables ruleset (base_seq). Never 0. */
always_inline __u32 generation(struct packet *p)
{
	struct active active = active_now();
	__u32 sum = active.epoch + active.mirror;

	if (cw_kernel_context) {
		struct net *net = packet_net(p);
		sum += net->ipv4.rt_genid.counter + net->ipv6.fib6_sernum.counter;
		/* a route of IPv6 that is deleted changes no number but this (net/ipv6/ip6_fib.c, fib6_del_route) */
		sum += net->ipv6.rt6_stats->fib_discarded_routes;
		if (bpf_core_field_exists(net->nft))
			sum += net->nft.base_seq;
	}
	return sum ?: 1;
}
