/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where a packet goes next: the kernel's own routing table decides (all of it: policy rules, metrics, path
 * MTU exceptions), its neighbour table gives the link address, device_v1 tells what lies below the device. */
#pragma once

/* Of several equal routes Linux chooses by it (net/ipv6/route.c, rt6_multipath_hash: fib_multipath_hash_policy 0). */
always_inline __be32 route_label(const struct packet *p)
{
	const struct ipv6hdr *ip = packet_ipv6(p);

	return ip ? *(const __be32 *)ip & bpf_htonl(0xfffff) : 0;
}

/* The question for the way of the packet, as Linux asks it (net/netfilter/nf_nat_proto.c: NF_IP_PRI_NAT_DST comes before
 * routing, NF_IP_PRI_NAT_SRC after it): to where it will go, from where it came, as arriving on the device it arrived on. */
always_inline void route_ask(const struct packet *p, const struct tuple *leaves, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = p->ifindex;
	fib->l4_protocol = leaves->proto;
	fib->sport = p->tuple.sport;
	fib->dport = leaves->dport;
	if (leaves->family == FAMILY_IPV4) {
		fib->family = AF_INET;
		fib->tos = p->tos;
		fib->ipv4_src = p->tuple.src.v4;
		fib->ipv4_dst = leaves->dst.v4;
	} else {
		fib->family = AF_INET6;
		fib->flowinfo = bpf_htonl((__u32)p->tos << 20) | route_label(p);
		__builtin_memcpy(fib->ipv6_src, &p->tuple.src, sizeof(p->tuple.src));
		__builtin_memcpy(fib->ipv6_dst, &leaves->dst, sizeof(leaves->dst));
	}
}

/* The MTU of a way whose neighbour is not known yet, which the kernel tells only if something does not fit. */
never_inline void route_mtu(const struct packet *p, struct scratch *s, __u32 mark)
{
	struct bpf_fib_lookup *fib = &s->back;

	route_ask(p, &s->forward.leaves, fib);
	fib->tot_len = 0xffff;
	fib->mark = mark;
	bpf_fib_lookup(p->ctx, fib, sizeof(*fib), mark ? BPF_FIB_LOOKUP_MARK : 0);
	s->route.fib.mtu_result = fib->mtu_result;
}

always_inline void route_lookup_marked(const struct packet *p, struct scratch *s, __u32 mark)
{
	struct route *r = &s->route;
	struct bpf_fib_lookup *fib = &r->fib;

	__builtin_memset(&r->device, 0, sizeof(r->device));
	r->mark = 0;
	r->family = p->tuple.family;
	route_ask(p, &s->forward.leaves, fib);
	fib->tot_len = 1; /* fits every MTU, and makes the kernel report the route's */
	fib->mark = mark;
	r->result = bpf_fib_lookup(p->ctx, fib, sizeof(*fib), mark ? BPF_FIB_LOOKUP_MARK : 0);
	if (r->result == BPF_FIB_LKUP_RET_NO_NEIGH)
		route_mtu(p, s, mark);
	if (r->result != BPF_FIB_LKUP_RET_SUCCESS && r->result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return;
	__u32 ifindex = fib->ifindex;
	const struct device *device = bpf_map_lookup_elem(&device_v1, &ifindex);
	if (device)
		r->device = *device;
	else
		r->device.lower = ifindex;
}

always_inline void route_lookup(const struct packet *p, struct scratch *s)
{
	route_lookup_marked(p, s, 0);
}

/* Can the routing table be asked with this mark? */
always_inline bool route_takes(__u32 mark)
{
	return !mark || bpf_core_field_exists(((struct bpf_fib_lookup___marked *)0)->mark);
}

always_inline bool route_leads(int result)
{
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

always_inline bool route_found(const struct route *r)
{
	return route_leads(r->result);
}

/* Is it to be forwarded, by us or, through a tunnel of the route's own, by Linux alone? Otherwise it is for this machine, or
 * for nobody. */
always_inline bool route_through(const struct route *r)
{
	return route_found(r) || r->result == BPF_FIB_LKUP_RET_UNSUPP_LWT;
}

/* The question for the way from an address to the packet's sender. */
always_inline void route_back_ask(const struct packet *p, const union addr *from, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->tot_len = 1;
	if (p->tuple.family == FAMILY_IPV4) {
		fib->family = AF_INET;
		fib->tos = p->tos;
		fib->ipv4_src = from->v4;
		fib->ipv4_dst = p->tuple.src.v4;
	} else {
		fib->family = AF_INET6;
		fib->flowinfo = bpf_htonl((__u32)p->tos << 20);
		__builtin_memcpy(fib->ipv6_src, from, sizeof(*from));
		__builtin_memcpy(fib->ipv6_dst, &p->tuple.src, sizeof(p->tuple.src));
	}
}

/* Is there one, for packets with the mark? s->back.ifindex: by which device. */
always_inline bool route_back_found(const struct packet *p, struct scratch *s, __u32 mark)
{
	s->back.mark = mark;
	s->back_result = bpf_fib_lookup(p->ctx, &s->back, sizeof(s->back), mark ? BPF_FIB_LOOKUP_MARK : 0);
	return route_leads(s->back_result);
}

/* Does the way to the sender lead out by the device that the packet came in by? Where it does not, or the sender is this machine,
 * it is for Linux to say whether the packet may be true (rp_filter, RFC 3704; net/ipv4/fib_frontend.c). Over IPv6 it does not
 * ask. s->back says where it leads. */
never_inline bool route_back_marked(const struct packet *p, struct scratch *s, __u32 mark)
{
	struct bpf_fib_lookup *fib = &s->back;

	if (p->tuple.family != FAMILY_IPV4)
		return true;
	route_back_ask(p, &p->tuple.dst, fib);
	fib->ifindex = p->ifindex;
	fib->l4_protocol = p->tuple.proto;
	fib->sport = p->tuple.dport;
	fib->dport = p->tuple.sport;
	return route_back_found(p, s, mark) && fib->ifindex == p->ifindex;
}

always_inline bool route_back(const struct packet *p, struct scratch *s)
{
	return route_back_marked(p, s, 0);
}

/* Does clearway take packets from this device? */
always_inline bool is_port(__u32 ifindex)
{
	__u32 slot = ifindex % PORT_SLOTS;
	const struct port *port = ifindex ? bpf_map_lookup_elem(&port_v1, &slot) : NULL;

	return port && port->ifindex == ifindex;
}

/* Is a packet socket (tcpdump) to see what arrives by this device? */
always_inline bool is_listened(__u32 ifindex)
{
	__u32 slot = ifindex % PORT_SLOTS;
	const struct port *port = bpf_map_lookup_elem(&port_v1, &slot);

	return port && port->listened && port->ifindex == ifindex;
}

/* Why a translated packet cannot go on. */
always_inline int route_reason(const struct route *r)
{
	return route_found(r) ? CONTINUE : REASON_DROP_NO_ROUTE;
}

/* The device that the route leaves by. */
always_inline void route_egress(const struct route *r, __u32 stamp, struct egress *out)
{
	const struct bpf_fib_lookup *fib = &r->fib;

	__builtin_memset(out, 0, sizeof(*out));
	out->stamp = stamp;
	out->route = fib->ifindex;
	out->ifindex = r->device.lower;
	out->vlan_outer = r->device.vlan_outer;
	out->vlan_inner = r->device.vlan_inner;
	__builtin_memcpy(out->smac, fib->smac, ETH_ALEN);
	out->xdp_transmit = r->device.xdp_transmit;
	out->family = r->family;
	out->mark = r->mark;
}

/* The next hop, and what it was resolved under. Without a neighbour it stays unresolved but for its MTU, and each packet asks
 * again. */
always_inline void route_verdict(const struct route *r, __u32 stamp, struct verdict *v, struct egress *out)
{
	v->stamp = 0;
	v->egress = 0;
	v->mtu = route_found(r) ? r->fib.mtu_result : 0;
	__builtin_memset(v->dmac, 0, sizeof(v->dmac));
	route_egress(r, stamp, out);
	if (r->result != BPF_FIB_LKUP_RET_SUCCESS)
		return;
	__builtin_memcpy(v->dmac, r->fib.dmac, ETH_ALEN);
	__u32 row = egress_store(out);
	if (row == EGRESS_NONE)
		return;
	v->egress = row;
	v->stamp = stamp;
}

always_inline void route_next_hop(const struct route *r, struct bpf_redir_neigh *next)
{
	__builtin_memset(next, 0, sizeof(*next));
	next->nh_family = r->fib.family; /* an IPv4 route through an IPv6 gateway changes it */
	__builtin_memcpy(next->ipv6_nh, r->fib.ipv6_dst, sizeof(next->ipv6_nh));
}
