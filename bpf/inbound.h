/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A NAT rule claims by source. Packets that answer a connection which came in through Linux (routed to the inside,
 * or forwarded by a port forward of nftables) have such a source too, and belong to Linux: either its conntrack
 * knows them, or the connection's packets went by here on their way in. */
#pragma once

/* On the way in: would a rule claim the answer? Then remember that it is not a rule's. */
always_inline void inbound_note(const struct packet *p, const struct config *config, struct scratch *s)
{
	struct inbound row = {.seen = now()};

	tuple_reverse(&p->tuple, &s->answer.key);
	if (nat_lookup(config->epoch, p->ifindex, &s->answer.key) || stateless_origin(config, &s->answer.key))
		bpf_map_update_elem(&inbound_v1, &s->answer.key, &row, BPF_ANY);
}

/* This connection was ours, and not translated; from now on it is Linux'. */
never_inline void inbound_released(const struct tuple *t, __u32 state)
{
	struct inbound row = {.seen = now()};

	if (state & FLOW_REPLY)
		bpf_map_update_elem(&inbound_v1, t, &row, BPF_ANY);
}

always_inline bool inbound_noted(const struct packet *p, const struct config *config)
{
	const struct inbound *row = bpf_map_lookup_elem(&inbound_v1, &p->tuple);
	__u32 limit = config->timeout_ms[p->tuple.proto == IPPROTO_TCP ? TIMEOUT_TCP_ESTABLISHED : TIMEOUT_UDP_STREAM];

	return row && now() - row->seen <= (__u64)limit * cw_hz / 1000;
}

enum inbound_direction {
	INBOUND_UNKNOWN,
	INBOUND_ORIGINAL,
	INBOUND_REPLY,
};

/* The connection of that tuple in Linux' conntrack, to be released; opts->dir: which direction of it. Only TCP and UDP can be
 * asked for (net/netfilter/nf_conntrack_bpf.c). */
always_inline struct nf_conn *inbound_ct(context *ctx, const struct tuple *t, struct bpf_ct_opts *opts)
{
	struct bpf_sock_tuple tuple = {};

	opts->netns_id = BPF_F_CURRENT_NETNS;
	opts->l4proto = t->proto;
	nat_sock_tuple(t, &tuple);
	if (t->family == FAMILY_IPV4)
		return packet_ct_lookup(ctx, &tuple, sizeof(tuple.ipv4), opts, sizeof(*opts));
	return packet_ct_lookup(ctx, &tuple, sizeof(tuple.ipv6), opts, sizeof(*opts));
}

/* Which direction of a connection that Linux' conntrack knows? */
never_inline enum inbound_direction inbound_in_conntrack(context *ctx, const struct tuple *t)
{
	struct bpf_ct_opts opts = {};
	struct nf_conn *ct = inbound_ct(ctx, t, &opts);

	if (!ct)
		return INBOUND_UNKNOWN;
	bpf_ct_release(ct);
	return opts.dir ? INBOUND_REPLY : INBOUND_ORIGINAL;
}

/* Is the packet of a connection that Linux' conntrack knows? */
always_inline bool inbound_in_linux(struct packet *p)
{
	return cw_conntrack && inbound_in_conntrack(p->ctx, &p->tuple) != INBOUND_UNKNOWN;
}

/* Does Linux carry the connection that this packet answers? */
always_inline bool inbound_known(struct packet *p, const struct config *config)
{
	if (inbound_noted(p, config))
		return true;
	return cw_conntrack && !is_icmp(&p->tuple) && inbound_in_conntrack(p->ctx, &p->tuple);
}

/* Does this packet answer what Linux carries? A SYN opens, it answers nothing. */
always_inline bool inbound_answer(struct packet *p, const struct config *config)
{
	if (p->tuple.proto == IPPROTO_TCP && tcp_is_open(p->tcp_flags))
		return false;
	if (p->tuple.proto == IPPROTO_TCP && p->tcp_flags & TCP_SYN)
		return true;
	return inbound_known(p, config);
}
