/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How the flow table is stored: buckets of seven entries, two buckets that a key may stand in. Only flow.h asks.
 *
 *   table_find      where the entry of a key stands
 *   table_intact    has its slot stayed what it was, since it was found?
 *   table_place     a new entry, written and not yet in force
 *   table_commit    in force
 *   table_free      not any more
 *   table_lock, table_unlock
 *                   nobody else frees, moves or rewrites it meanwhile
 *   table_shift     an entry moved to the other of its buckets
 *
 * A slot changes hands by compare-and-exchange of its mark alone, so nobody ever waits:
 *
 *   FREE --claim--> CLAIMED --written--> BORN --commit--> in force --free--> FREE
 *                                          +---withdraw or kill------------> FREE
 *
 * Each step counts the mark on. A reader takes what it needs and then looks at the mark again: unchanged, it has seen one
 * entry and no mixture. Two CPUs that place the same key at once see each other: each looks through both buckets after
 * its own entry is BORN (the exchange is a full barrier), and the one that stands further back gives way. */
#pragma once

#define TAG_SHIFT 16
#define LIFE_MASK 0xffffu

enum flow_result {
	FLOW_CREATED,
	FLOW_TAKEN,  /* the translated tuple belongs to another connection */
	FLOW_EXISTS, /* another CPU opened the same connection first */
	FLOW_FULL,
};

/* Where an entry stands. Small: it lies on the stack of functions that call each other. */
struct spot {
	struct flow *flow;
	struct flow_marks *marks;
	__u16 slot;
	__u16 table;
	__u32 mark; /* as it was found */
	__u32 bucket;
	__u32 first; /* of the two buckets of its key */
};

/* Where a key may stand. */
struct choice {
	__u32 bucket[2];
	__u32 tag;
};

always_inline const struct flow_tables *flow_tables(void)
{
	const struct flow_tables *tables = &flows_v3;

	keep_register(tables);
	return tables;
}

always_inline __u32 table_buckets(const struct flow_tables *tables, const int family, __u32 table)
{
	table &= 1;
	return family == FAMILY_IPV4 ? tables->buckets4[table] : tables->buckets6[table];
}

/* A number's upper half is worth most, and becomes a bucket. */
always_inline __u32 table_scale(__u64 hash, __u32 buckets)
{
	return (hash >> 32) * buckets >> 32;
}

/* Multilinear hashing: the upper half of a sum of products with secret numbers is strongly universal (Lemire and
 * Kaser, "Strongly universal string hashing is fast", 2014), so nobody outside can choose keys that meet. It is mixed
 * because the sums of keys that follow each other, as a client's ports do, follow each other too: with one secret in
 * twenty they would come in heaps. */
always_inline __u64 table_hash(const struct flow_tables *tables, const struct tuple *t, const int family)
{
	const __u64 *key = tables->key;
	__u64 hash = key[0] + key[1] * ((__u32)t->sport << 16 | t->dport) + key[2] * t->proto;

	hash += key[3] * t->src.words[0] + key[4] * t->dst.words[0];
	if (family == FAMILY_IPV4)
		return mix64(hash);
	hash += key[5] * t->src.words[1] + key[6] * t->dst.words[1];
	hash += key[7] * t->src.words[2] + key[8] * t->dst.words[2];
	return mix64(hash + key[9] * t->src.words[3] + key[10] * t->dst.words[3]);
}

always_inline __u32 table_tag(__u64 hash)
{
	__u32 tag = (__u16)(hash >> 16);

	return tag < FLOW_TAG_FIRST ? tag + FLOW_TAG_FIRST : tag;
}

always_inline __u32 table_second(__u64 hash, __u32 first, __u32 buckets)
{
	__u32 second = table_scale(mix64_again(hash), buckets);

	if (second != first)
		return second;
	return second + 1 < buckets ? second + 1 : 0;
}

always_inline void table_choose(const struct flow_tables *tables, const struct tuple *t, const int family,
				__u32 buckets, struct choice *choice)
{
	__u64 hash = table_hash(tables, t, family);

	choice->tag = table_tag(hash);
	choice->bucket[0] = table_scale(hash, buckets);
	choice->bucket[1] = table_second(hash, choice->bucket[0], buckets);
}

always_inline struct flow_marks *table_bucket(const int family, __u32 table, __u32 bucket)
{
	if (family == FAMILY_IPV4) {
		void *inner = bpf_map_lookup_elem(&flow4_v3, &table);
		return inner ? bpf_map_lookup_elem(inner, &bucket) : NULL;
	}
	void *inner = bpf_map_lookup_elem(&flow6_v3, &table);
	return inner ? bpf_map_lookup_elem(inner, &bucket) : NULL;
}

always_inline struct flow *table_slot(struct flow_marks *marks, const int family, __u32 slot)
{
	if (family == FAMILY_IPV4)
		return &((struct flow4_bucket *)marks)->slot[slot].flow;
	return &((struct flow6_bucket *)marks)->slot[slot].flow;
}

/* NULL: there is none. The address is made where the bound is seen: of a number that was put aside in between, the verifier of
 * Linux 6.1 has forgotten it. */
always_inline struct flow *table_slot_within(struct flow_marks *marks, const int family, __u32 slot)
{
	keep_register(slot);
	if (!marks || slot >= FLOW_SLOTS)
		return NULL;
	keep_register(marks);
	struct flow *f = table_slot(marks, family, slot);
	keep_register(f);
	return f;
}

always_inline bool flow_is(const struct flow *f, const struct tuple *t, const int family)
{
	if (f->key_sport != t->sport || f->key_dport != t->dport || (__u8)f->state != t->proto)
		return false;
	if (family == FAMILY_IPV4) {
		const struct flow4 *f4 = (void *)f;
		return f4->key_src == t->src.v4 && f4->key_dst == t->dst.v4;
	}
	const struct flow6 *f6 = (void *)f;
	return addr_equal(&f6->key_src, &t->src) && addr_equal(&f6->key_dst, &t->dst);
}

/* The same slot, as a number that the verifier knows nothing of, so that what follows is verified once and not for each
 * slot. FLOW_SLOTS and more: none. `any`: a number that it does not know either. */
always_inline __u32 table_any_slot(__u32 slot, __u32 any)
{
	__u32 others = ~any;

	keep_register(others);
	return slot + (any & others);
}

#define AWAY_ONE (1ull << 56) /* in the last word of the marks */
#define AWAY_MAX 128	      /* never reached by chance; leaves room for as many CPUs that count at once */

always_inline void table_count_away(struct flow_marks *first, __u64 add)
{
	__u64 *words = (void *)first;

	__sync_fetch_and_add(&words[sizeof(*first) / sizeof(*words) - 1], add);
}

/* A first bucket counts its entries that stand in their second ones, so that nobody looks there in vain. It counts up
 * before one can be found there, and down when it cannot be found there any more. */
always_inline void table_went_away(struct flow_marks *first)
{
	table_count_away(first, AWAY_ONE);
}

always_inline void table_came_back(struct flow_marks *first)
{
	table_count_away(first, -AWAY_ONE);
}

/* The slot that an entry takes if it is free: one look there finds most of them, and the entry's line is fetched
 * together with that of the marks, not after it. */
always_inline __u32 table_home(__u32 tag)
{
	__u32 slot = (__u16)tag * FLOW_SLOTS >> 16;

	keep_register(slot); /* a bound that the verifier sees */
	return slot;
}

/* The entry of `t` in a bucket. The line of its home is asked for together with that of the marks, also where no entry is
 * expected: what is to be placed there finds it at hand, which makes a first packet 5 % quicker. */
always_inline bool table_scan(struct flow_marks *marks, const struct tuple *t, __u32 tag, const int family,
			      struct spot *spot)
{
	__u32 slot = table_home(tag), mark = READ_ONCE(marks->mark[slot]);
	__u32 seen = READ_ONCE(table_slot(marks, family, slot)->seen);

	keep_register(seen);
	if (mark >> TAG_SHIFT != tag || !flow_is(table_slot(marks, family, slot), t, family))
#pragma clang loop unroll(full)
		for (slot = 0; slot < FLOW_SLOTS; slot++) {
			mark = READ_ONCE(marks->mark[slot]);
			if (mark >> TAG_SHIFT == tag && flow_is(table_slot(marks, family, slot), t, family))
				break;
		}
	slot = table_any_slot(slot, mark);
	if (slot >= FLOW_SLOTS)
		return false;
	struct flow *f = table_slot(marks, family, slot);
	keep_register(f);
	spot->flow = f;
	spot->marks = marks;
	spot->slot = slot;
	spot->mark = mark;
	return true;
}

/* The entry of `t` in one of the tables; hash: table_hash() of t. The second bucket is not even computed for those that stand
 * in the first, nor where nobody has gone there. */
always_inline bool table_find(const struct flow_tables *tables, const struct tuple *t, __u64 hash, const int family,
			      __u32 table, struct spot *spot)
{
	__u32 buckets = table_buckets(tables, family, table);
	__u32 tag = table_tag(hash);

	spot->table = table;
	spot->first = spot->bucket = table_scale(hash, buckets);
	struct flow_marks *marks = table_bucket(family, table, spot->bucket);
	if (!marks)
		return false;
	if (table_scan(marks, t, tag, family, spot))
		return true;
	if (!READ_ONCE(marks->away))
		return false;
	spot->bucket = table_second(hash, spot->bucket, buckets);
	marks = table_bucket(family, table, spot->bucket);
	return marks && table_scan(marks, t, tag, family, spot);
}

always_inline __u32 *table_mark(struct flow_marks *marks, __u32 slot)
{
	if (slot >= FLOW_SLOTS)
		slot = 0; /* for the verifier */
	keep_register(slot);
	return &marks->mark[slot];
}

/* The entry anew, where the verifier has forgotten of which family it is. */
always_inline struct flow *table_entry(const struct spot *spot, const int family)
{
	return table_slot_within(table_bucket(family, spot->table, spot->bucket), family, spot->slot);
}

/* Was what has been read of the entry the entry's? */
always_inline bool table_intact(const struct spot *spot)
{
	compiler_barrier(); /* or what is not needed of an entry that has changed is read only afterwards */
	return READ_ONCE(*table_mark(spot->marks, spot->slot)) == spot->mark;
}

always_inline __u32 table_rare(const struct spot *spot)
{
	__u32 slot = spot->slot;

	keep_register(slot);
	return slot < FLOW_SLOTS ? spot->marks->rare[slot] : 0;
}

always_inline __u32 table_nat(const struct spot *spot)
{
	__u32 slot = spot->slot;

	keep_register(slot);
	return slot < FLOW_SLOTS ? spot->marks->nat[slot] : 0;
}

/* A mark with another tag, counted on; the count stays even. */
always_inline __u32 mark_next(__u32 mark, __u32 tag)
{
	return tag << TAG_SHIFT | ((mark + 2) & LIFE_MASK);
}

always_inline bool mark_change(__u32 *mark, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap(mark, from, to) == from;
}

/* An odd mark is a locked one: its entry is found, and all of it but the next hop may be believed, but only who has locked
 * it frees, moves or rewrites it. Nobody waits for that: who comes meanwhile does without. */
always_inline bool mark_locked(__u32 mark)
{
	return mark & 1;
}

/* True for the only one who ends this life of the slot. first: of the two buckets of its key, NULL where it stands there. */
always_inline bool table_free(struct flow_marks *marks, __u32 slot, __u32 mark, struct flow_marks *first)
{
	if (mark_locked(mark) || !mark_change(table_mark(marks, slot), mark, mark_next(mark, FLOW_TAG_FREE)))
		return false;
	if (first)
		table_came_back(first);
	return true;
}

always_inline bool table_lock(struct spot *spot)
{
	if (mark_locked(spot->mark) || !mark_change(table_mark(spot->marks, spot->slot), spot->mark, spot->mark + 1))
		return false;
	spot->mark++;
	return true;
}

/* By who has locked it. tag: its own, or FREE. */
always_inline void table_unlock(struct flow_marks *marks, __u32 slot, __u32 mark, __u32 tag)
{
	__sync_lock_test_and_set(table_mark(marks, slot), tag << TAG_SHIFT | ((mark + 1) & LIFE_MASK));
}

/* What packets have told an entry that was freed since it was copied, unless its place is somebody else's already.
 * freed: its mark since then. */
always_inline void table_inherit(struct flow *to, const struct flow *from, struct flow_marks *marks, __u32 slot,
				 __u32 freed)
{
	__u32 state = READ_ONCE(from->state);

	if (READ_ONCE(*table_mark(marks, slot)) == freed)
		__sync_fetch_and_or(&to->state, state);
}

/* What is to become an entry, and where it was placed. */
struct birth {
	struct tuple key; /* as it arrives */
	struct tuple leaves;
	struct flow flow; /* all but the ports */
	__u32 rare;
	__u32 nat; /* one byte of it */
	__u32 table;
	__u32 bucket;
	__u32 slot;
	__u32 mark;
	struct choice choice;
	__u32 moving; /* the connection stands in the other table, and is to move */
};

/* The key of an entry. */
always_inline void flow_key(const struct flow *f, const int family, struct tuple *t)
{
	union addr none = {};

	t->sport = f->key_sport;
	t->dport = f->key_dport;
	t->proto = f->state;
	t->family = family;
	t->pad[0] = t->pad[1] = 0;
	t->src = t->dst = none;
	if (family == FAMILY_IPV4) {
		const struct flow4 *f4 = (void *)f;
		t->src.v4 = f4->key_src;
		t->dst.v4 = f4->key_dst;
		return;
	}
	const struct flow6 *f6 = (void *)f;
	t->src = f6->key_src;
	t->dst = f6->key_dst;
}

/* An entry's sum in carried_v1, copied for the place that it moves to. */
never_inline void carried_copy(__u8 family, __u32 table, __u32 from, __u32 to)
{
	struct carried_key key = {.slot = from, .family = family, .table = table};
	const struct carried *row = bpf_map_lookup_elem(&carried_v1, &key);

	if (!row)
		return;
	struct carried sum = *row;
	key.slot = to;
	bpf_map_update_elem(&carried_v1, &key, &sum, BPF_ANY);
}

always_inline void carried_forget(__u8 family, __u32 table, __u32 slot)
{
	struct carried_key key = {.slot = slot, .family = family, .table = table};

	bpf_map_delete_elem(&carried_v1, &key);
}

always_inline int table_used(const struct flow_marks *marks)
{
	int used = 0;

#pragma clang loop unroll(full)
	for (int slot = 0; slot < FLOW_SLOTS; slot++)
		used += ((READ_ONCE(marks->mark[slot]) >> TAG_SHIFT) + LIFE_MASK) >> TAG_SHIFT; /* tag != FREE */
	return used;
}

always_inline bool table_claim_slot(struct flow_marks *marks, __u32 slot, __u32 *mark)
{
	__u32 was = READ_ONCE(marks->mark[slot]);

	*mark = mark_next(was, FLOW_TAG_CLAIMED);
	return was >> TAG_SHIFT == FLOW_TAG_FREE && mark_change(&marks->mark[slot], was, *mark);
}

/* A free slot of the bucket for an entry with this tag, now ours; FLOW_SLOTS: there is none. *mark: what it is now. */
always_inline __u32 table_claim_in(struct flow_marks *marks, __u32 tag, __u32 *mark)
{
	__u32 slot = table_home(tag);

	if (!table_claim_slot(marks, slot, mark))
		for (slot = 0; slot < FLOW_SLOTS; slot++)
			if (table_claim_slot(marks, slot, mark))
				break;
	return table_any_slot(slot, *mark);
}

always_inline void table_write(struct flow *f, const struct birth *b, const int family)
{
	*f = b->flow;
	f->key_sport = b->key.sport;
	f->key_dport = b->key.dport;
	f->sport = b->leaves.sport;
	f->dport = b->leaves.dport;
	if (family == FAMILY_IPV4) {
		struct flow4 *f4 = (void *)f;
		f4->key_src = b->key.src.v4;
		f4->key_dst = b->key.dst.v4;
		f4->src = b->leaves.src.v4;
		f4->dst = b->leaves.dst.v4;
		return;
	}
	struct flow6 *f6 = (void *)f;
	f6->key_src = b->key.src;
	f6->key_dst = b->key.dst;
	f6->src = b->leaves.src;
	f6->dst = b->leaves.dst;
	f6->addr_delta = addr_delta(&b->key, &b->leaves);
}

/* Does another entry of the same key stand in this bucket, that ours must give way to? One that is being born as well
 * and stands further back is ended. first: NULL if this is the first bucket. */
always_inline bool table_yields(struct flow_marks *marks, __u32 bucket, const struct birth *b, const int family,
				struct flow_marks *first)
{
	for (__u32 slot = 0; slot < FLOW_SLOTS; slot++) {
		__u32 mark = READ_ONCE(marks->mark[slot]), tag = mark >> TAG_SHIFT;
		if (bucket == b->bucket && slot == b->slot)
			continue;
		if ((tag != b->choice.tag && tag != FLOW_TAG_BORN) ||
		    !flow_is(table_slot(marks, family, slot), &b->key, family))
			continue;
		if (tag == b->choice.tag || bucket < b->bucket || (bucket == b->bucket && slot < b->slot))
			return true;
		if (!mark_change(&marks->mark[slot], mark, mark_next(mark, FLOW_TAG_FREE)))
			return true;
		if (first)
			table_came_back(first);
	}
	return false;
}

/* Is there an entry of the key that is to be born? */
always_inline bool table_has(const struct flow_tables *tables, const struct birth *b, struct flow_marks *first,
			     const int family)
{
	const struct choice *choice = &b->choice;
	struct spot spot = {};

	if (table_scan(first, &b->key, choice->tag, family, &spot))
		return true;
	if (READ_ONCE(first->away)) {
		struct flow_marks *second = table_bucket(family, b->table, choice->bucket[1]);
		if (second && table_scan(second, &b->key, choice->tag, family, &spot))
			return true;
	}
	return !b->moving && table_buckets(tables, family, !b->table) &&
	       table_find(tables, &b->key, table_hash(tables, &b->key, family), family, !b->table, &spot);
}

/* Write the entry into a free slot of its buckets. CREATED: BORN, to be committed or withdrawn. */
always_inline enum flow_result table_place(const struct flow_tables *tables, struct birth *b, const int family)
{
	struct flow_marks *first, *second, *marks;
	const struct choice *choice = &b->choice;

	b->table = tables->current & 1;
	table_choose(tables, &b->key, family, table_buckets(tables, family, b->table), &b->choice);
	first = table_bucket(family, b->table, choice->bucket[0]);
	if (!first)
		return FLOW_FULL;
	if (table_has(tables, b, first, family))
		return FLOW_EXISTS;
	bool away = false;
	marks = first;
	__u32 slot = table_claim_in(marks, choice->tag, &b->mark);
	if (slot >= FLOW_SLOTS) {
		marks = table_bucket(family, b->table, choice->bucket[1]);
		if (!marks || READ_ONCE(first->away) >= AWAY_MAX)
			return FLOW_FULL;
		away = true;
		table_went_away(first);
		slot = table_claim_in(marks, choice->tag, &b->mark);
	}
	keep_register(slot);
	if (slot >= FLOW_SLOTS) {
		table_came_back(first);
		return FLOW_FULL;
	}
	b->slot = slot;
	b->bucket = away ? choice->bucket[1] : choice->bucket[0];
	table_write(table_slot(marks, family, slot), b, family);
	marks->rare[slot] = b->rare;
	marks->nat[slot] = b->nat;
	b->mark = mark_next(b->mark, FLOW_TAG_BORN);
	__sync_lock_test_and_set(&marks->mark[slot], b->mark);
	bool yields = table_yields(first, choice->bucket[0], b, family, NULL);
	if (!yields && READ_ONCE(first->away)) {
		second = table_bucket(family, b->table, choice->bucket[1]);
		yields = second && table_yields(second, choice->bucket[1], b, family, first);
	}
	if (!yields)
		return FLOW_CREATED;
	if (mark_change(&marks->mark[slot], b->mark, mark_next(b->mark, FLOW_TAG_FREE)) &&
	    b->bucket != choice->bucket[0]) /* `away`, which the verifier would follow through all of the above */
		table_came_back(first);
	return FLOW_EXISTS;
}

#define NO_BUCKET (~0u)

/* An entry of this bucket moved to the other bucket that it may stand in; false: there is no place, or it is just
 * changing. For a moment it stands in both, so that nobody misses it: the copy is locked until the old one is freed, so
 * that who ends the connection meanwhile ends it by the old one, and then the copy goes too. spare: two
 * buckets that it is not moved to. `key` is room to work in. */
always_inline bool table_shift(const struct flow_tables *tables, struct flow_marks *marks, __u32 bucket, __u32 slot,
			       const int family, const __u32 *spare, struct tuple *key)
{
	__u32 mark = READ_ONCE(marks->mark[slot]), table = tables->current & 1, claimed;
	struct flow *f = table_slot(marks, family, slot);
	struct choice choice;

	if (mark >> TAG_SHIFT < FLOW_TAG_FIRST || mark_locked(mark))
		return false;
	flow_key(f, family, key);
	table_choose(tables, key, family, table_buckets(tables, family, table), &choice);
	bool leaves = choice.bucket[0] == bucket; /* for its second bucket */
	__u32 other = leaves ? choice.bucket[1] : choice.bucket[0];
	struct flow_marks *there = table_bucket(family, table, other);
	if (!there || other == spare[0] || other == spare[1] || (leaves && READ_ONCE(marks->away) >= AWAY_MAX))
		return false;
	struct flow_marks *first = leaves ? marks : there;
	if (leaves)
		table_went_away(first);
	__u32 place = table_claim_in(there, choice.tag, &claimed);
	if (place >= FLOW_SLOTS) {
		if (leaves)
			table_came_back(first);
		return false;
	}
	struct flow *to = table_slot(there, family, place);
	if (family == FAMILY_IPV4)
		*(struct flow4 *)to = *(struct flow4 *)f;
	else
		*(struct flow6 *)to = *(struct flow6 *)f;
	there->rare[place] = marks->rare[slot];
	there->nat[place] = marks->nat[slot];
	bool folded = to->state & FLOW_FOLDED;
	__u32 here = bucket * FLOW_SLOTS + slot, yonder = other * FLOW_SLOTS + place;
	if (folded)
		carried_copy(family, table, here, yonder);
	to->carried = READ_ONCE(f->carried); /* not behind its row */
	__u32 tag = mark >> TAG_SHIFT, moved = mark_next(claimed, tag) | 1, freed = mark_next(mark, FLOW_TAG_FREE);
	bool same = READ_ONCE(marks->mark[slot]) == mark;
	__sync_lock_test_and_set(&there->mark[place], same ? moved : mark_next(claimed, FLOW_TAG_FREE));
	bool done = same && mark_change(&marks->mark[slot], mark, freed);
	if (done)
		table_inherit(to, f, marks, slot, freed);
	if (folded)
		carried_forget(family, table, done ? here : yonder);
	if (same)
		table_unlock(there, place, moved, done ? tag : FLOW_TAG_FREE);
	if (leaves != done)
		table_came_back(first);
	return done;
}

/* From BORN on: false if it has been ended by who stands further in front. */
always_inline bool table_turn(struct birth *b, __u32 next)
{
	struct flow_marks *marks = table_bucket(b->key.family, b->table, b->bucket);

	if (!marks || !mark_change(table_mark(marks, b->slot), b->mark, next))
		return false;
	b->mark = next;
	return true;
}

/* In force, and locked. */
always_inline bool table_commit(struct birth *b)
{
	return table_turn(b, mark_next(b->mark, b->choice.tag) | 1);
}

/* What was placed is FREE. */
always_inline void table_left(const struct birth *b)
{
	if (b->bucket == b->choice.bucket[0])
		return;
	struct flow_marks *first = table_bucket(b->key.family, b->table, b->choice.bucket[0]);
	if (first)
		table_came_back(first);
}

always_inline void table_withdraw(struct birth *b)
{
	if (table_turn(b, mark_next(b->mark, FLOW_TAG_FREE)))
		table_left(b);
}

/* After table_commit(): it stays, or is FREE. */
always_inline void table_release(const struct birth *b, bool stays)
{
	struct flow_marks *marks = table_bucket(b->key.family, b->table, b->bucket);

	if (!marks)
		return;
	table_unlock(marks, b->slot, b->mark, stays ? b->choice.tag : FLOW_TAG_FREE);
	if (!stays)
		table_left(b);
}
