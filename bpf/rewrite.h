/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow's verdict applied to the packet: addresses, ports, TTL, checksums, tags, link addresses. */
#pragma once

#define DECREMENT_TTL ((__u16)~bpf_htons(0x0100)) /* checksum difference: TTL is the upper byte of its word */
#define DECREMENT_HOP_LIMIT ((__u16)~bpf_htons(1))

/* ---- what rules of Linux would change besides (adopt.h) ---- */

always_inline const struct mangle *mangle_of(__u32 state)
{
	if (!(state & FLOW_ADOPTED) || !(state & FLOW_MANGLE))
		return NULL;
	__u32 row = (state & FLOW_MANGLE) >> FLOW_MANGLE_SHIFT;
	return bpf_map_lookup_elem(&mangle_v1, &row);
}

/* How many hops are left behind all rules. */
always_inline __s32 mangle_hops(const struct mangle *m, __u8 hops)
{
	__s32 left = (hops & m->hops_keep) + m->hops_add;

	return left < m->hops_most ? left : m->hops_most;
}

/* Does the packet not expire by it? */
always_inline bool mangle_fits(const struct packet *p, __u32 state)
{
	const struct mangle *m = mangle_of(state);

	return !m || mangle_hops(m, p->ttl) > 0;
}

always_inline __u8 mangle_tos(const struct mangle *m, __u8 tos)
{
	return (tos & m->tos_keep) ^ m->tos_flip;
}

always_inline void mangle_ipv4(const struct packet *p, const struct mangle *m, struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u16 tos = words[0], hops = words[4];

	ip->tos = mangle_tos(m, ip->tos);
	ip->ttl = mangle_hops(m, p->ttl);
	ip->check = checksum_apply(ip->check, delta16(tos, words[0]) + delta16(hops, words[4]));
}

/* Returns the checksum difference that it makes. */
always_inline __u16 mangle_ipv6(const struct packet *p, const struct mangle *m, struct ipv6hdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u16 class = words[0], hops = words[3];
	__u8 tos = mangle_tos(m, ip->priority << 4 | ip->flow_lbl[0] >> 4);

	ip->priority = tos >> 4;
	ip->flow_lbl[0] = tos << 4 | (ip->flow_lbl[0] & 0xf);
	ip->hop_limit = mangle_hops(m, p->ttl);
	return fold(delta16(class, words[0]) + delta16(hops, words[3]));
}

/* ---- the verdict ---- */

always_inline void rewrite_ipv4(struct packet *p, const struct verdict *v, __u8 hops)
{
	struct iphdr *ip = p->l3;

	ip->saddr = v->src.v4;
	ip->daddr = v->dst.v4;
	ip->ttl -= hops;
	ip->check = checksum_apply(ip->check, v->addr_delta + (hops ? DECREMENT_TTL : 0));
	const struct mangle *m = mangle_of(v->state);
	if (m)
		mangle_ipv4(p, m, ip);
}

/* *changed: checksum difference made in the header, where no checksum balances it. */
always_inline bool rewrite_ipv6(struct packet *p, const struct verdict *v, __u8 hops, __u32 *changed)
{
	struct ipv6hdr *ip = packet_ipv6(p);

	if (!ip)
		return false;
	addr_store(&ip->saddr, &v->src);
	addr_store(&ip->daddr, &v->dst);
	ip->hop_limit -= hops;
	const struct mangle *m = mangle_of(v->state);
	*changed = (hops ? DECREMENT_HOP_LIMIT : 0) + (m ? mangle_ipv6(p, m, ip) : 0);
	return true;
}

always_inline bool rewrite_l4(struct packet *p, const struct verdict *v, __u32 header_delta)
{
	__u32 addr_delta = v->addr_delta, port_delta = v->port_delta;

	if (p->tuple.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = p->l4;
		tcp->source = v->sport;
		tcp->dest = v->dport;
		return packet_checksum(p, offsetof(struct tcphdr, check), header_delta, addr_delta, port_delta, false);
	}
	if (p->tuple.proto == IPPROTO_UDP) {
		struct udphdr *udp = p->l4;
		udp->source = v->sport;
		udp->dest = v->dport;
		return packet_checksum(p, offsetof(struct udphdr, check), header_delta, addr_delta, port_delta, true);
	}
	struct icmphdr *icmp = p->l4;
	icmp->echo.id = p->icmp_type == icmp_request(p->tuple.family) ? v->sport : v->dport;
	return packet_checksum(p, offsetof(struct icmphdr, checksum), header_delta,
			       p->tuple.family == FAMILY_IPV4 ? 0 : addr_delta, port_delta, false);
}

/* Layers 3 and 4; hops: 1, or 0 where Linux will forward the packet and count the hop. A later fragment has no layer 4 of its own: the first one carries the checksum of all. */
always_inline bool rewrite(struct packet *p, const struct verdict *v, __u8 hops)
{
	__u32 changed = 0;

	if (p->tuple.family == FAMILY_IPV4)
		rewrite_ipv4(p, v, hops);
	else if (!rewrite_ipv6(p, v, hops, &changed))
		return false;
	if (p->l4)
		return rewrite_l4(p, v, changed);
	packet_header_changed(p, changed);
	return true;
}

/* To the next hop at `dmac`, through the device that `out` names. */
always_inline int send(struct packet *p, const __u8 *dmac, const struct egress *out, int reason)
{
	if (!packet_link(p, dmac, out->smac, out->vlan_outer, out->vlan_inner) || !packet_trim(p))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	count(p, reason);
	packet_mark(p, out->mark);
	return packet_transmit(p, out->ifindex);
}

always_inline int forward(struct packet *p, const struct verdict *v, const struct egress *out, int reason)
{
	if (!rewrite(p, v, 1))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	return send(p, v->dmac, out, reason);
}
