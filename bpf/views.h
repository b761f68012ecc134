/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What was proved of Linux' rules (struct trust; src/clearway/proof), and what they keep in Linux. What a packet looks like to
 * rules depends on where they stand: before any translation, between the two, behind both.
 *
 *   trust_what        what is known of the rules that are in force now
 *   views_tell        what classifiers say of a packet: might a rule that only Linux can follow meet it, or one that does
 *                     not accept it; what do they change in it?
 */
#pragma once

always_inline const struct trust *trust_now(void)
{
	const __u32 zero = 0;

	return bpf_map_lookup_elem(&trust_v2, &zero);
}

/* enum trusted; 0: of these rules nothing is. Kernels before 6.17 do not show which rules are in force: there what was told
 * last is believed. A generation's stamp must have been read before. */
always_inline __u32 trust_what(struct net *net)
{
	const struct trust *trust = trust_now();

	if (!trust)
		return 0;
	if (net && bpf_core_field_exists(net->nft)) {
		__u32 in_force = net->nft.base_seq;
		if (READ_ONCE(trust->base_seq) != in_force && READ_ONCE(trust->own_seq) != in_force)
			return 0;
	}
	return READ_ONCE(trust->what);
}

/* What rules can ask of s->passing besides its tuple, and that as it arrives in s->answer.key. */
always_inline void views_asked(struct scratch *s)
{
	struct asked *a = &s->judging.asked;

	__builtin_memset(a, 0, sizeof(*a));
	a->ifindex_in = s->passing.inside;
	a->ifindex_out = s->passing.outside;
	a->mark = s->passing.mark;
	s->answer.key = s->passing.arrives;
}

/* What rules of that view see; not of one before the last. */
always_inline void views_see(struct scratch *s, struct fields *fields, __u32 view)
{
	const struct tuple *leaves = &s->passing.leaves;

	if (view >= VIEW_BETWEEN) {
		s->answer.key.dst = leaves->dst;
		s->answer.key.dport = leaves->dport;
	}
	if (view == VIEW_AFTER) {
		s->answer.key.src = leaves->src;
		s->answer.key.sport = leaves->sport;
	}
	fields_write(fields, &s->answer.key, &s->judging.asked);
}

/* Where the classifiers that are in force begin. */
always_inline __u32 trust_places(__u32 first, __u32 trusted)
{
	return first | !!(trusted & TRUST_OTHER) << 3;
}

/* About scratch.passing, what the first classifier tells that has something to tell, from this place on; 0: none has. */
__noinline int views_tell(__u32 places)
{
	struct scratch *s = scratch_get();
	struct classify *c = classify_here();

	if (!s || !c)
		return 1;
	views_asked(s);
	for (__u32 view = 0; view < VIEWS; view++) {
		views_see(s, &c->fields, view);
		if (classify(places | view << 1 | (s->passing.arrives.family == FAMILY_IPV6)) != CLASSIFY_NONE &&
		    c->told) /* 0: lets them pass */
			return c->told;
	}
	return 0;
}
