/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a flow's next hop was resolved under. All counters that can make it stale only ever grow, so that
 * their sum changes when any of them does, and one word in the flow and one comparison on the hit path
 * are enough. */
#pragma once

/* Routes and rules of the packet's family (rt_genid, fib6_sernum: include/net/netns/). */
always_inline __u32 generation_of_routes(const struct net *net, __u8 family)
{
	if (family == FAMILY_IPV4)
		return net->ipv4.rt_genid.counter;
	/* a route that is deleted changes no number but the second (net/ipv6/ip6_fib.c, fib6_del_route) */
	return net->ipv6.fib6_sernum.counter + net->ipv6.rt6_stats->fib_discarded_routes;
}

/* For packets of one family: clearway's configuration, the mirror, and, read from the kernel where it can be, routes and the
 * nftables ruleset (base_seq). Never 0. device: packet_device_seen() */
always_inline __u32 generation_by(const struct packet *p, const struct net_device *device)
{
	__u32 sum = epoch_now() + mirror_now();

	if (device) {
		const struct net *net = device->nd_net.net;
		sum += generation_of_routes(net, p->tuple.family);
		if (bpf_core_field_exists(net->nft))
			sum += net->nft.base_seq;
	}
	return sum ?: 1;
}

always_inline __u32 generation(const struct packet *p)
{
	return generation_by(p, packet_device_seen(p));
}
