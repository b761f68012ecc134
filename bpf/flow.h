/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow table. Two entries a connection, one for each direction; the key of one is the reverse of what
 * the other leaves as, so each finds the other. This file alone knows how they are stored:
 *
 *   flow_lookup       the entry of a packet's direction
 *   flow_leaves       the tuple that a packet of this entry leaves with
 *   flow_pair         the entry of the other direction
 *   flow_create_pair  both or none; the reply's key decides who owns a translated tuple
 *   flow_delete_pair  both
 *   flow_refresh      a packet went by
 *   flow_each         visit every entry (sweep.bpf.c)
 */
#pragma once

enum flow_result {
	FLOW_CREATED,
	FLOW_TAKEN,  /* the translated tuple belongs to another connection */
	FLOW_EXISTS, /* another CPU opened the same connection first */
	FLOW_FULL,
};

always_inline struct flow4_key flow4_key(const struct tuple *t)
{
	struct flow4_key key = {
		.src = t->src.v4, .dst = t->dst.v4, .sport = t->sport, .dport = t->dport, .proto = t->proto};
	return key;
}

always_inline struct flow6_key flow6_key(const struct tuple *t)
{
	struct flow6_key key = {.src = t->src, .dst = t->dst, .sport = t->sport, .dport = t->dport, .proto = t->proto};
	return key;
}

always_inline struct flow *flow_lookup(const struct tuple *t)
{
	if (t->family == FAMILY_IPV4) {
		struct flow4_key key = flow4_key(t);
		struct flow *f = bpf_map_lookup_elem(&flow4_v1, &key);

		keep_register(f); /* one call for both tables could not be inlined by the verifier */
		return f;
	}
	struct flow6_key key = flow6_key(t);
	return bpf_map_lookup_elem(&flow6_v1, &key);
}

always_inline void flow_leaves(const struct flow *f, const struct tuple *t, struct tuple *out)
{
	*out = *t;
	out->src = f->src;
	out->dst = f->dst;
	out->sport = f->sport;
	out->dport = f->dport;
}

/* NULL also when the key has been taken by another connection: the entry there must lead back to this one. */
never_inline struct flow *flow_pair(const struct flow *f, const struct tuple *t)
{
	struct tuple leaves, key;

	flow_leaves(f, t, &leaves);
	tuple_reverse(&leaves, &key);
	struct flow *other = flow_lookup(&key);
	if (!other || other->sport != t->dport || other->dport != t->sport || !addr_equal(&other->src, &t->dst) ||
	    !addr_equal(&other->dst, &t->src))
		return NULL;
	return other;
}

always_inline long flow_delete(const struct tuple *t)
{
	if (t->family == FAMILY_IPV4) {
		struct flow4_key key = flow4_key(t);
		return bpf_map_delete_elem(&flow4_v1, &key);
	}
	struct flow6_key key = flow6_key(t);
	return bpf_map_delete_elem(&flow6_v1, &key);
}

never_inline void flow_delete_pair(const struct flow *f, const struct tuple *t)
{
	struct tuple leaves, key;

	flow_leaves(f, t, &leaves);
	tuple_reverse(&leaves, &key);
	flow_delete(t);
	flow_delete(&key);
}

/* What turns `from` into `to`: the translation and the differences it makes to checksums. */
always_inline void flow_translate(struct flow *f, const struct tuple *from, const struct tuple *to)
{
	__u32 delta = delta32(from->src.words[0], to->src.words[0]) + delta32(from->dst.words[0], to->dst.words[0]);

	if (from->family == FAMILY_IPV6)
		for (int i = 1; i < 4; i++)
			delta += delta32(from->src.words[i], to->src.words[i]) +
				 delta32(from->dst.words[i], to->dst.words[i]);
	f->addr_delta = fold(delta);
	f->port_delta = fold(delta16(from->sport, to->sport) + delta16(from->dport, to->dport));
	f->src = to->src;
	f->dst = to->dst;
	f->sport = to->sport;
	f->dport = to->dport;
}

/* Before Linux 6.4 the kernel's function returns an int, and the upper half of the register is not its sign. */
always_inline int error_of(long returned)
{
	__u32 low = returned;

	keep_register(low);
	return low;
}

always_inline int flow_insert(const struct tuple *t, const struct flow *f)
{
	if (t->family == FAMILY_IPV4) {
		struct flow4_key key = flow4_key(t);
		return error_of(bpf_map_update_elem(&flow4_v1, &key, f, BPF_NOEXIST));
	}
	struct flow6_key key = flow6_key(t);
	return error_of(bpf_map_update_elem(&flow6_v1, &key, f, BPF_NOEXIST));
}

#define EEXIST 17

/* Opens the connection that arrives as s->arrives and leaves as s->leaves, whose replies arrive as s->reply
 * and leave as s->back, as s->forward and s->answer say. The reply's entry is inserted first: only one CPU can win
 * its key. */
always_inline enum flow_result flow_create_pair(struct scratch *s)
{
	int error;

	flow_translate(&s->forward, &s->arrives, &s->leaves);
	flow_translate(&s->answer, &s->reply, &s->back);
	error = flow_insert(&s->reply, &s->answer);
	if (error)
		return error == -EEXIST ? FLOW_TAKEN : FLOW_FULL;
	error = flow_insert(&s->arrives, &s->forward);
	if (!error)
		return FLOW_CREATED;
	flow_delete(&s->reply);
	return error == -EEXIST ? FLOW_EXISTS : FLOW_FULL;
}

always_inline void flow_refresh(struct flow *f, __u32 bytes)
{
	f->packets++;
	f->bytes += bytes;
	f->seen = now();
}

always_inline void flow4_tuple(const struct flow4_key *key, struct tuple *t)
{
	struct tuple out = {.sport = key->sport, .dport = key->dport, .proto = key->proto, .family = FAMILY_IPV4};

	out.src.v4 = key->src;
	out.dst.v4 = key->dst;
	*t = out;
}

always_inline void flow6_tuple(const struct flow6_key *key, struct tuple *t)
{
	struct tuple out = {.src = key->src,
			    .dst = key->dst,
			    .sport = key->sport,
			    .dport = key->dport,
			    .proto = key->proto,
			    .family = FAMILY_IPV6};
	*t = out;
}

/* VISIT(tuple, flow, argument) is called for every entry; it may delete the pair it is given. Defined as a
 * macro because the verifier wants one callback a table. */
#define FLOW_EACH(VISIT, ARGUMENT) \
	static long visit_flow4(void *map, struct flow4_key *key, struct flow *f, ARGUMENT *argument) \
	{ \
		struct tuple t; \
		flow4_tuple(key, &t); \
		VISIT(&t, f, argument); \
		return 0; \
	} \
	static long visit_flow6(void *map, struct flow6_key *key, struct flow *f, ARGUMENT *argument) \
	{ \
		struct tuple t; \
		flow6_tuple(key, &t); \
		VISIT(&t, f, argument); \
		return 0; \
	} \
	static void flow_each(ARGUMENT *argument) \
	{ \
		bpf_for_each_map_elem(&flow4_v1, visit_flow4, argument, 0); \
		bpf_for_each_map_elem(&flow6_v1, visit_flow6, argument, 0); \
	}
