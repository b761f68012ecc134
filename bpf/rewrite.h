/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow's verdict applied to the packet: addresses, ports, TTL, checksums, tags, link addresses. */
#pragma once

#define DECREMENT_TTL ((__u16)~bpf_htons(0x0100)) /* checksum difference: TTL is the upper byte of its word */

always_inline void rewrite_ipv4(struct packet *p, const struct verdict *v, __u8 hops)
{
	struct iphdr *ip = p->l3;

	ip->saddr = v->src.v4;
	ip->daddr = v->dst.v4;
	ip->ttl -= hops;
	ip->check = checksum_apply(ip->check, (__u32)v->addr_delta + (hops ? DECREMENT_TTL : 0));
}

always_inline bool rewrite_ipv6(struct packet *p, const struct verdict *v, __u8 hops)
{
	struct ipv6hdr *ip = packet_ipv6(p);

	if (!ip)
		return false;
	__builtin_memcpy(&ip->saddr, &v->src, sizeof(v->src));
	__builtin_memcpy(&ip->daddr, &v->dst, sizeof(v->dst));
	ip->hop_limit -= hops;
	if (hops)
		packet_hop_limit_decremented(p);
	return true;
}

always_inline bool rewrite_l4(struct packet *p, const struct verdict *v)
{
	__u16 addr_delta = v->addr_delta, port_delta = v->port_delta;

	if (p->tuple.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = p->l4;
		tcp->source = v->sport;
		tcp->dest = v->dport;
		return packet_checksum(p, offsetof(struct tcphdr, check), addr_delta, port_delta, false);
	}
	if (p->tuple.proto == IPPROTO_UDP) {
		struct udphdr *udp = p->l4;
		udp->source = v->sport;
		udp->dest = v->dport;
		return packet_checksum(p, offsetof(struct udphdr, check), addr_delta, port_delta, true);
	}
	struct icmphdr *icmp = p->l4;
	icmp->echo.id = p->icmp_type == icmp_request(p->tuple.family) ? v->sport : v->dport;
	return packet_checksum(p, offsetof(struct icmphdr, checksum), p->tuple.family == FAMILY_IPV4 ? 0 : addr_delta,
			       port_delta, false);
}

/* Layers 3 and 4; hops: 1, or 0 where Linux will forward the packet and count the hop. A later fragment has no layer 4 of its own: the first one carries the checksum of all. */
always_inline bool rewrite(struct packet *p, const struct verdict *v, __u8 hops)
{
	if (p->tuple.family == FAMILY_IPV4)
		rewrite_ipv4(p, v, hops);
	else if (!rewrite_ipv6(p, v, hops))
		return false;
	if (!p->l4)
		return true;
	return rewrite_l4(p, v);
}

/* To the next hop at `dmac`, through the device that `out` names. */
always_inline int send(struct packet *p, const __u8 *dmac, const struct egress *out, int reason)
{
	if (!packet_link(p, dmac, out->smac, out->vlan_outer, out->vlan_inner))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	count(p, reason);
	return packet_transmit(p, out->ifindex);
}

always_inline int forward(struct packet *p, const struct verdict *v, const struct egress *out, int reason)
{
	if (!rewrite(p, v, 1))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	return send(p, v->dmac, out, reason);
}
