/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What clearway's own services and NAT claim, and Linux' rules: these decide about it as if Linux carried it. Of packets that
 * they certainly let pass nobody is told more; all others go to Linux, which balances and translates them by a table of
 * clearway's (compiler/nft_table.py), and whose connections are learned back (adopt.h).
 *
 *   honour_first      before a connection is opened: may it be?
 *   honour_opened     the same, by the port that it has got
 *   honour_later      may a packet in its middle pass?
 *   honour_known      may it go on, as the rules are now?
 *   honour_hand_over  Linux takes it over as it is
 */
#pragma once

/* Do rules count at all for what is claimed? */
always_inline bool honour_in_force(void)
{
	const struct trust *trust = trust_now();

	return trust && READ_ONCE(trust->honours) & HONOURS_RULES;
}

/* Linux carries it, if it can by now. */
always_inline int honour_left(void)
{
	const struct trust *trust = trust_now();

	return trust && READ_ONCE(trust->honours) & HONOURS_TABLE ? REASON_PUNT_KEPT : REASON_DROP_UNPROVEN;
}

always_inline bool honour_asks(__u32 trusted, __u8 family)
{
	return trusted & (family == FAMILY_IPV4 ? TRUST_ASK_IPV4 : TRUST_ASK_IPV6);
}

/* What is known; enum trusted. */
always_inline __u32 honour_trusted(struct packet *p)
{
	struct net *net = cw_kernel_context ? packet_net(p) : NULL;

	return trust_what(net);
}

always_inline void honour_passing(struct scratch *s, const struct tuple *arrives, const struct tuple *leaves,
				  __u32 inside, __u32 outside)
{
	s->passing.arrives = *arrives;
	s->passing.leaves = *leaves;
	s->passing.inside = inside;
	s->passing.outside = outside;
	s->passing.mark = 0; /* only conntrack gives marks */
}

/* Does a rule keep the first packet of the connection in s->passing, one that follows, or one that answers? */
always_inline bool honour_keeps(struct scratch *s, __u32 trusted)
{
	struct passing *passing = &s->passing;

	if (views_tell(trust_places(FIRST_PLACES, trusted)) || views_tell(trust_places(LATER_PLACES, trusted)))
		return true;
	__u32 outside = passing->outside;
	tuple_reverse(&passing->arrives, &s->answer.leaves);
	tuple_reverse(&passing->leaves, &passing->arrives);
	passing->leaves = s->answer.leaves;
	passing->outside = passing->inside;
	passing->inside = outside;
	return views_tell(trust_places(LATER_PLACES, trusted));
}

/* Before a connection is opened that leaves as s->forward.leaves, and from s->source. CONTINUE: it may be. What is in its middle
 * Linux may know, and is Linux' to say whether it is picked up. */
never_inline int honour_first(struct packet *p, struct scratch *s)
{
	__u32 trusted = honour_trusted(p);
	bool tcp = p->tuple.proto == IPPROTO_TCP;

	if (!(trusted & TRUST_HONOUR))
		return REASON_DROP_UNPROVEN;
	if (!honour_asks(trusted, p->tuple.family))
		return CONTINUE;
	if (tcp ? !tcp_is_open(p->tcp_flags) : p->tuple.proto != IPPROTO_UDP || inbound_in_linux(p))
		return honour_left();
	s->answer.leaves = s->forward.leaves;
	s->answer.leaves.src = s->source.address;
	honour_passing(s, &p->tuple, &s->answer.leaves, p->ifindex, s->route.fib.ifindex);
	return honour_keeps(s, trusted) ? honour_left() : CONTINUE;
}

/* It was opened, with a source port that nobody knew before. Otherwise than by CONTINUE it is closed again. */
never_inline int honour_opened(struct packet *p, struct scratch *s)
{
	__u32 trusted = honour_trusted(p);

	if (s->forward.leaves.sport == p->tuple.sport)
		return CONTINUE;
	if (trusted & TRUST_HONOUR) {
		if (!honour_asks(trusted, p->tuple.family))
			return CONTINUE;
		honour_passing(s, &p->tuple, &s->forward.leaves, p->ifindex, s->route.fib.ifindex);
		if (!honour_keeps(s, trusted))
			return CONTINUE;
	}
	flow_end(&s->ending, &p->tuple, FLOW_END_LINUX);
	return honour_left();
}

/* A packet that is in the middle of its connection. CONTINUE: it may go on. */
never_inline int honour_later(struct packet *p, struct scratch *s, const struct tuple *leaves)
{
	__u32 trusted = honour_trusted(p);

	if (!(trusted & TRUST_HONOUR))
		return REASON_DROP_UNPROVEN;
	if (!honour_asks(trusted, p->tuple.family))
		return CONTINUE;
	honour_passing(s, &p->tuple, leaves, p->ifindex, s->route.fib.ifindex);
	return views_tell(trust_places(LATER_PLACES, trusted)) ? REASON_DROP_KEPT : CONTINUE;
}

#define HANDED_OVER_MS 60000 /* until Linux has seen a packet, and gives it what it gives others */

/* Linux' conntrack has the connection from now on, with the translation that it has here, as one that is established. Of the
 * packets until now it knows nothing, so this one has to be in its middle, and of the direction that opened it. */
__noinline int honour_hand_over(context *ctx)
{
	struct scratch *s = scratch_get();
	struct bpf_ct_opts opts = {.netns_id = BPF_F_CURRENT_NETNS};
	struct bpf_sock_tuple tuple = {};
	union nf_inet_addr address = {};

	keep_register(ctx);
	if (!s || !cw_handover) /* here: the verifier goes through a function that nobody calls */
		return 0;
	const struct peek *e = &s->entry;
	opts.l4proto = e->key.proto;
	__u32 size = nat_sock_tuple(&e->key, &tuple);
	struct nf_conn___init *init = size == sizeof(tuple.ipv4) ?
					      packet_ct_alloc(ctx, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts)) :
					      packet_ct_alloc(ctx, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	if (!init)
		return 0;
	int wrong = 0;
	if (e->state & FLOW_DEST_NAT) {
		__builtin_memcpy(&address, &e->leaves.dst, sizeof(address));
		wrong |= bpf_ct_set_nat_info(init, &address, bpf_ntohs(e->leaves.dport), NF_NAT_MANIP_DST);
	}
	if (e->state & FLOW_SOURCE_NAT) {
		__builtin_memcpy(&address, &e->leaves.src, sizeof(address));
		wrong |= bpf_ct_set_nat_info(init, &address, bpf_ntohs(e->leaves.sport), NF_NAT_MANIP_SRC);
	}
	bpf_ct_set_timeout(init, wrong ? 0 : HANDED_OVER_MS);
	bpf_ct_set_status(init, IPS_SEEN_REPLY | IPS_ASSURED);
	struct nf_conn *ct = bpf_ct_insert_entry(init);
	if (!ct)
		return 0;
	bpf_ct_release(ct);
	return !wrong;
}

/* A connection of ours whose rules may have changed; s->route is its way. CONTINUE: it goes on. */
always_inline int honour_known(struct packet *p, struct scratch *s)
{
	const struct peek *e = &s->entry;

	if (!(e->state & FLOW_HONOURS) || !honour_in_force())
		return CONTINUE;
	int reason = honour_later(p, s, &e->leaves);
	if (reason != REASON_DROP_KEPT || honour_left() != REASON_PUNT_KEPT || e->state & FLOW_REPLY ||
	    !adopt_is_plain(p) || !honour_hand_over(p->ctx))
		return reason;
	flow_end(&s->ending, &p->tuple, FLOW_END_LINUX);
	return REASON_PUNT_KEPT;
}
