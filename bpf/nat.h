/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Source NAT: which address and port a new flow leaves with. */
#pragma once

/* Tries walk the range in steps of a prime that no range is a multiple of, from a random start: neighbours in use
 * do not crowd the search, a range of up to PORT_TRIES ports is tried to the last, and at 99 % use of a larger one
 * 3 in 100,000 searches fail. More would let a client that has used up its ports burn a CPU with every packet. */
#define PORT_TRIES 1024
#define PORT_STEP 65537

/* The rule for traffic from this source through this egress device: longest prefix first. */
never_inline const struct nat *nat_lookup(__u32 epoch, __u32 ifindex, const struct tuple *t)
{
	struct nat_key key = {.prefixlen = NAT_KEY_FIXED_BITS + (t->family == FAMILY_IPV4 ? 32 : 128),
			      .epoch = epoch,
			      .ifindex = ifindex,
			      .family = t->family,
			      .source = t->src};

	return bpf_map_lookup_elem(&nat_v2, &key);
}

always_inline bool nat_device_address(const struct device *device, __u8 family, union addr *address)
{
	union addr none = {};

	*address = none;
	if (family == FAMILY_IPV4)
		address->v4 = device->address4;
	else
		*address = device->address6;
	return !addr_equal(address, &none);
}

/* The same client always gets the same address of a pool (RFC 4787, REQ-2: paired). */
always_inline void nat_pool_address(const struct nat *nat, const struct tuple *t, union addr *address)
{
	__u32 hash = mix(0, t->src.words[0]);

	if (t->family == FAMILY_IPV6)
		hash = mix(mix(mix(hash, t->src.words[1]), t->src.words[2]), t->src.words[3]);
	__u32 last = t->family == FAMILY_IPV4 ? 0 : 3;
	__u32 offset = nat->addresses ? hash % nat->addresses : 0;
	*address = nat->first;
	/* a pool lies within the last 32 bits of the address (compiler/) */
	if (last)
		address->words[3] = bpf_htonl(bpf_ntohl(address->words[3]) + offset);
	else
		address->v4 = bpf_htonl(bpf_ntohl(address->v4) + offset);
}

/* A tuple as the kernel's lookups take it; returns its size. */
always_inline __u32 nat_sock_tuple(const struct tuple *t, struct bpf_sock_tuple *out)
{
	if (t->family == FAMILY_IPV4) {
		out->ipv4.saddr = t->src.v4;
		out->ipv4.daddr = t->dst.v4;
		out->ipv4.sport = t->sport;
		out->ipv4.dport = t->dport;
		return sizeof(out->ipv4);
	}
	__builtin_memcpy(out->ipv6.saddr, &t->src, sizeof(t->src));
	__builtin_memcpy(out->ipv6.daddr, &t->dst, sizeof(t->dst));
	out->ipv6.sport = t->sport;
	out->ipv6.dport = t->dport;
	return sizeof(out->ipv6);
}

/* Does a socket of this machine use the address and port? `t` is the tuple that replies would arrive with. */
always_inline bool nat_port_in_use(context *ctx, const struct tuple *t)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = nat_sock_tuple(t, &tuple);
	struct bpf_sock *sk;

	if (t->proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (t->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

struct port_search {
	context *ctx;
	__u32 start;
	enum flow_result result;
};

/* Try number i of nat_open; 1 ends the search. */
static long nat_try(__u32 i, struct port_search *search)
{
	struct scratch *s = scratch_get();

	if (!s)
		return 1;
	__u32 span = s->source.port_max - s->source.port_min + 1;
	__u16 port = bpf_ntohs(s->forward.key.sport);
	if (i || port < s->source.port_min || port > s->source.port_max)
		port = s->source.port_min + (search->start % span + i * PORT_STEP) % span;
	s->forward.leaves.sport = bpf_htons(port);
	s->answer.key.dport = s->forward.leaves.sport;
	if (s->source.host && nat_port_in_use(search->ctx, &s->answer.key))
		return 0;
	search->result = flow_open(&s->forward, &s->answer);
	return search->result != FLOW_TAKEN;
}

/* Opens the flow in the scratch, whose key is the packet's, with a source that nobody else uses. A flow whose source
 * stays as it is gets here too: two of them may want the same translated tuple (one client, two services, one endpoint),
 * then the later one's port changes, as Linux does it. enum flow_result. */
__noinline int nat_open(context *ctx)
{
	struct port_search search = {.ctx = ctx, .start = bpf_get_prandom_u32(), .result = FLOW_TAKEN};
	struct scratch *s = scratch_get();

	if (!s)
		return FLOW_FULL;
	s->forward.leaves.src = s->source.address;
	tuple_reverse(&s->forward.key, &s->answer.leaves);
	tuple_reverse(&s->forward.leaves, &s->answer.key);
	bpf_loop(PORT_TRIES, nat_try, &search, 0);
	if (search.result == FLOW_FULL && flow_make_room_both(&s->forward, &s->answer, &s->ending))
		bpf_loop(PORT_TRIES, nat_try, &search, 0);
	return search.result;
}
