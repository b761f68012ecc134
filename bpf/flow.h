/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow table, as the stages see it. Two entries a connection, one for each direction; the key of one is the reverse
 * of what the other leaves as, so each finds the other. How they are stored is table.h's business.
 *
 *   flow_hit          the verdict for a packet, from the current table
 *   flow_peek         a copy of an entry, from whichever table
 *   flow_resolve      another next hop for it
 *   flow_open         both or none; the reply's key decides who owns a translated tuple
 *   flow_end          both
 *   flow_refresh      a packet went by
 *   flow_touch        one came, and was refused
 */
#pragma once

/* What becomes of a packet of a flow: a copy, which nobody changes under us. */
struct verdict {
	union addr src; /* as it leaves; IPv4: the first four bytes alone are set */
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u32 addr_delta; /* checksum difference made by the addresses (rewrite.h), not folded */
	__u32 port_delta; /* and by the ports */
	__u16 mtu;
	__u16 egress;
	__u8 dmac[6];
	__u32 state;
	__u32 stamp;
};

always_inline void flow_ports(const struct tuple *t, const struct flow *f, struct verdict *v)
{
	v->sport = f->sport;
	v->dport = f->dport;
	v->port_delta = delta16(t->sport, v->sport) + delta16(t->dport, v->dport);
}

always_inline void flow_addresses(const struct tuple *t, const struct flow *f, const int family, struct verdict *v)
{
	if (family == FAMILY_IPV4) {
		const struct flow4 *f4 = (void *)f;
		v->src.v4 = f4->src;
		v->dst.v4 = f4->dst;
		v->addr_delta = fold64((__u64)(__u32)~t->src.v4 + (__u32)~t->dst.v4 + v->src.v4 + v->dst.v4);
		return;
	}
	const struct flow6 *f6 = (void *)f;
	v->src = f6->src;
	v->dst = f6->dst;
	v->addr_delta = f6->addr_delta;
}

always_inline void flow_verdict(const struct tuple *t, const struct flow *f, const int family, struct verdict *v)
{
	v->state = f->state;
	v->stamp = f->stamp;
	v->mtu = f->mtu;
	v->egress = f->egress;
	__builtin_memcpy(v->dmac, f->dmac, sizeof(v->dmac));
	flow_ports(t, f, v);
	flow_addresses(t, f, family, v);
}

/* The flow's next hop. */
always_inline void flow_hop(const struct verdict *v, struct flow *f)
{
	f->egress = v->egress;
	f->mtu = v->mtu;
	__builtin_memcpy(f->dmac, v->dmac, sizeof(f->dmac));
	f->stamp = v->stamp;
}

/* The hit path's: only the current table; NULL as well where somebody has locked the entry. */
always_inline struct flow *flow_hit_in(const struct flow_tables *tables, const struct tuple *t, const int family,
				       struct verdict *v, __u64 *hash)
{
	struct spot spot = {};

	*hash = table_hash(tables, t, family);
	if (!table_find(tables, t, *hash, family, tables->current & 1, &spot))
		return NULL;
	flow_verdict(t, spot.flow, family, v);
	if (mark_locked(spot.mark) || !table_intact(&spot))
		return NULL;
	struct flow *f = spot.flow;
	keep_register(f); /* two kinds of entry must not meet in one instruction */
	return f;
}

/* *hash: the tuple's, whether there is a flow or not. */
always_inline struct flow *flow_hit(const struct tuple *t, struct verdict *v, __u64 *hash)
{
	const struct flow_tables *tables = flow_tables();

	if (t->family == FAMILY_IPV4)
		return flow_hit_in(tables, t, FAMILY_IPV4, v, hash);
	return flow_hit_in(tables, t, FAMILY_IPV6, v, hash);
}

/* The hash that flow_hit() tells. */
always_inline __u64 flow_hash(const struct tuple *t)
{
	return table_hash(flow_tables(), t, t->family);
}

always_inline bool flow_find_in(const struct tuple *t, const int family, struct spot *spot)
{
	const struct flow_tables *tables = flow_tables();
	__u64 hash = table_hash(tables, t, family);
	__u32 table = tables->current & 1;

	/* Twice: what moves, to its other bucket or to the other table, may pass a reader by who comes its way. */
	for (int i = 0; i < 2 * FLOW_TABLES; i++, table ^= 1)
		if (table_buckets(tables, family, table) && table_find(tables, t, hash, family, table, spot))
			return true;
	return false;
}

never_inline bool flow4_find(const struct tuple *t, struct spot *spot)
{
	return flow_find_in(t, FAMILY_IPV4, spot);
}

never_inline bool flow6_find(const struct tuple *t, struct spot *spot)
{
	return flow_find_in(t, FAMILY_IPV6, spot);
}

always_inline bool flow_find(const struct tuple *t, struct spot *spot)
{
	return t->family == FAMILY_IPV4 ? flow4_find(t, spot) : flow6_find(t, spot);
}

/* The tuple that a packet leaves with. */
always_inline void verdict_leaves(const struct verdict *v, const struct tuple *t, struct tuple *out)
{
	*out = *t;
	if (t->family == FAMILY_IPV4) {
		out->src.v4 = v->src.v4;
		out->dst.v4 = v->dst.v4;
	} else {
		out->src = v->src;
		out->dst = v->dst;
	}
	out->sport = v->sport;
	out->dport = v->dport;
}

/* ---- what an entry has carried ---- */

/* In one word, packets << 32 + bytes, so that counting is one addition; bytes that overflow count as packets, and are taken
 * off again where both are told apart. carried_v1 goes on where a word ends: it is brought up to date each time that
 * the upper bit of either half turns over, and adds what the word has grown by since, modulo its size. Done twice, it
 * adds nothing. */
#define CARRIED_PACKET (1ull << 32)
#define CARRIED_TURNS (1ull << 63 | 1ull << 31)

always_inline void carried_add(struct carried *total, __u64 word)
{
	total->bytes += (__u32)word - (__u32)total->bytes;
	total->packets += (__u32)(word >> 32) - (__u32)(total->bytes >> 32) - (__u32)total->packets;
}

always_inline struct carried_key carried_key(__u8 family, __u32 table, __u32 bucket, __u32 slot)
{
	struct carried_key key = {.slot = bucket * FLOW_SLOTS + slot, .family = family, .table = table};

	return key;
}

/* Everything that an entry has carried so far. The word is read last: it is never behind the row. */
always_inline void carried_total(const struct carried_key *key, const struct flow *f, struct carried *total)
{
	const struct carried *row = f->state & FLOW_FOLDED ? bpf_map_lookup_elem(&carried_v1, key) : NULL;

	total->packets = row ? READ_ONCE(row->packets) : 0;
	total->bytes = row ? READ_ONCE(row->bytes) : 0;
	carried_add(total, READ_ONCE(f->carried));
}

/* ---- one entry ---- */

always_inline struct way flow_way(const struct flow *f)
{
	__u64 both = (__u64)f->tcp_window << 32 | f->tcp_ack;
	struct way way = {.inside = both >> WAY_BITS, .outside = both & WAY_MAX};

	return way;
}

always_inline void flow_lead(struct flow *f, const struct way *way)
{
	__u64 both = (__u64)way->inside << WAY_BITS | way->outside;

	f->tcp_ack = both;
	f->tcp_window = both >> 32;
}

/* Rules change its packets as that state says. */
always_inline void flow_mangle(struct flow *f, __u32 state)
{
	if (!((f->state ^ state) & FLOW_MANGLE))
		return;
	__sync_fetch_and_and(&f->state, ~(__u32)FLOW_MANGLE);
	__sync_fetch_and_or(&f->state, state & FLOW_MANGLE);
}

/* One entry, copied, and where it stands. */
struct peek {
	struct tuple key;
	struct tuple leaves;
	struct verdict verdict;
	struct carried carried;
	__u32 state;
	__u32 seen;
	__u32 rare;
	__u32 nat;
	__u32 asked;	/* FLOW_ADOPTED: adopt_asked_of() */
	struct way way; /* likewise */
	__u32 table;
	__u32 bucket;
	__u32 first; /* of the two buckets of its key */
	__u32 slot;
	__u32 mark;
};

enum peek_result {
	PEEK_NOTHING,
	PEEK_FOUND,
	PEEK_CHANGED, /* meanwhile: it may have moved, or be another connection's */
};

/* What stands under peek->key; enum peek_result. The word of what was carried is read last: it is never behind its row. */
__noinline int flow_peek_once(struct peek *peek)
{
	struct spot spot = {};
	const struct flow *f;

	if (!peek || !flow_find(&peek->key, &spot))
		return PEEK_NOTHING;
	if (peek->key.family == FAMILY_IPV4) {
		f = table_entry(&spot, FAMILY_IPV4);
		if (!f)
			return PEEK_NOTHING;
		flow_verdict(&peek->key, f, FAMILY_IPV4, &peek->verdict);
	} else {
		f = table_entry(&spot, FAMILY_IPV6);
		if (!f)
			return PEEK_NOTHING;
		flow_verdict(&peek->key, f, FAMILY_IPV6, &peek->verdict);
	}
	verdict_leaves(&peek->verdict, &peek->key, &peek->leaves);
	peek->state = peek->verdict.state;
	peek->seen = f->seen;
	peek->way = flow_way(f);
	peek->asked = f->tcp_next;
	peek->rare = table_rare(&spot);
	peek->nat = table_nat(&spot);
	peek->table = spot.table;
	peek->bucket = spot.bucket;
	peek->first = spot.first;
	peek->slot = spot.slot;
	peek->mark = spot.mark;
	struct carried_key key = carried_key(peek->key.family, spot.table, spot.bucket, spot.slot);
	carried_total(&key, f, &peek->carried);
	if (mark_locked(spot.mark))
		peek->verdict.stamp = 0;
	return table_intact(&spot) ? PEEK_FOUND : PEEK_CHANGED;
}

#define PEEK_TRIES 4

always_inline bool flow_peek(struct peek *peek)
{
	int result = PEEK_CHANGED;

	for (int i = 0; i < PEEK_TRIES && result == PEEK_CHANGED; i++)
		result = flow_peek_once(peek);
	return result == PEEK_FOUND;
}

/* The entry that was copied, in *spot; false: it has moved, or ended. */
always_inline bool peek_spot(const struct peek *peek, const int family, struct spot *spot)
{
	struct flow_marks *marks = table_bucket(family, peek->table & 1, peek->bucket);
	__u32 slot = peek->slot;

	keep_register(slot);
	if (!marks || slot >= FLOW_SLOTS)
		return false;
	spot->flow = table_slot(marks, family, slot);
	spot->marks = marks;
	spot->slot = slot;
	spot->bucket = peek->bucket;
	spot->table = peek->table & 1;
	spot->mark = READ_ONCE(*table_mark(marks, slot));
	return spot->mark >> TAG_SHIFT == peek->mark >> TAG_SHIFT && flow_is(spot->flow, &peek->key, family);
}

/* Brings carried_v1 up to date. */
always_inline void carried_fold(const struct spot *spot, __u8 family)
{
	struct carried_key key = carried_key(family, spot->table, spot->bucket, spot->slot);
	struct carried total;

	carried_total(&key, spot->flow, &total);
	if (!bpf_map_update_elem(&carried_v1, &key, &total, BPF_ANY))
		__sync_fetch_and_or(&spot->flow->state, FLOW_FOLDED);
}

always_inline bool peek_spot_any(const struct peek *peek, struct spot *spot)
{
	return peek->key.family == FAMILY_IPV4 ? peek_spot(peek, FAMILY_IPV4, spot) :
						 peek_spot(peek, FAMILY_IPV6, spot);
}

/* A packet of this entry went by; it is not counted if the entry has just moved. */
__noinline int flow_refresh(struct peek *peek, __u32 bytes)
{
	struct spot spot = {};

	if (!peek || !peek_spot_any(peek, &spot))
		return 0;
	struct flow *f = spot.flow;
	__u64 was = f->carried, is = was + CARRIED_PACKET + bytes;
	f->carried = is;
	f->seen = now();
	if ((was ^ is) & CARRIED_TURNS)
		carried_fold(&spot, peek->key.family);
	return 1;
}

/* A packet of this entry came, and went nowhere. */
__noinline int flow_touch(struct peek *peek)
{
	struct spot spot = {};

	if (!peek || !peek_spot_any(peek, &spot))
		return 0;
	spot.flow->seen = now();
	return 1;
}

/* The entry has peek->verdict's next hop from now on, unless somebody else is just changing it; and an adopted one peek->asked,
 * peek->way and FLOW_MANGLE of peek->verdict.state. */
__noinline int flow_resolve(struct peek *peek)
{
	struct spot spot = {};

	if (!peek || !peek_spot_any(peek, &spot) || !table_lock(&spot))
		return 0;
	flow_hop(&peek->verdict, spot.flow);
	if (spot.flow->state & FLOW_ADOPTED) {
		spot.flow->tcp_next = peek->asked;
		flow_lead(spot.flow, &peek->way);
		flow_mangle(spot.flow, peek->verdict.state);
	}
	table_unlock(spot.marks, spot.slot, spot.mark, spot.mark >> TAG_SHIFT);
	return 1;
}

/* ---- the end of a connection ---- */

/* A connection that is to end, named by the key of either direction. */
struct ending {
	struct peek entry;
	struct peek pair;
	__u32 why; /* enum flow_end */
	__u32 now;
	__u32 idle;	 /* out: of both */
	__u32 paired;	 /* out */
	__u64 rank;	 /* of the best that was found to evict */
	__u32 bucket[2]; /* of the entry that wants a place */
	__u32 spare[2];	 /* nothing is moved to these */
};

always_inline bool peek_free(const struct peek *peek)
{
	struct flow_marks *marks = table_bucket(peek->key.family, peek->table, peek->bucket), *first = NULL;

	if (peek->bucket != peek->first)
		first = table_bucket(peek->key.family, peek->table, peek->first);
	if (!marks || !table_free(marks, peek->slot, peek->mark, first))
		return false;
	if (peek->state & FLOW_FOLDED) {
		struct carried_key key = carried_key(peek->key.family, peek->table, peek->bucket, peek->slot);
		bpf_map_delete_elem(&carried_v1, &key);
	}
	return true;
}

always_inline void flow_count_end(__u32 why)
{
	struct opened *ended = bpf_map_lookup_elem(&ended_v2, &why);

	if (ended)
		ended->connections++;
}

always_inline const struct peek *ended_opening(const struct ending *e)
{
	return e->entry.state & FLOW_REPLY ? &e->pair : &e->entry;
}

always_inline const struct peek *ended_answering(const struct ending *e)
{
	return e->entry.state & FLOW_REPLY ? &e->entry : &e->pair;
}

always_inline void flow_write_record(const struct ending *e, struct flow_record *record)
{
	const struct peek *opening = ended_opening(e), *answering = ended_answering(e);

	record->client = opening->key;
	record->leaves = opening->leaves;
	record->packets = opening->carried.packets;
	record->bytes = opening->carried.bytes;
	record->reply_packets = answering->carried.packets;
	record->reply_bytes = answering->carried.bytes;
	record->ended = bpf_jiffies64();
	record->created = answering->rare;
	record->seen = opening->seen;
	record->reply_seen = answering->seen;
	record->state = opening->state;
	record->endpoint = opening->rare;
	record->nat = opening->nat | answering->nat << 8;
	record->why = e->why;
	record->pad = 0;
}

/* For who follows the ends of connections. */
__noinline int flow_tell(const struct ending *e)
{
	__u32 zero = 0;

	if (!e || !flow_tables()->records)
		return 0;
	struct flow_record *record = bpf_ringbuf_reserve(&records_v1, sizeof(*record), 0);
	if (!record) {
		struct opened *lost = bpf_map_lookup_elem(&lost_v1, &zero);
		if (lost)
			lost->connections++;
		return 0;
	}
	flow_write_record(e, record);
	bpf_ringbuf_submit(record, 0);
	return 1;
}

/* For the daemon's accounts of Linux' rules: of every connection that was adopted. */
__noinline int flow_account(const struct ending *e)
{
	__u32 zero = 0;

	if (!e)
		return 0;
	const struct peek *opening = ended_opening(e), *answering = ended_answering(e);
	struct adopted_record *record = bpf_ringbuf_reserve(&adopted_v1, sizeof(*record), 0);
	if (!record) {
		struct counter *lost = bpf_map_lookup_elem(&unaccounted_v1, &zero);
		if (lost) {
			lost->packets += opening->carried.packets + answering->carried.packets;
			lost->bytes += opening->carried.bytes + answering->carried.bytes;
		}
		return 0;
	}
	flow_write_record(e, &record->flow);
	record->way = opening->way;
	record->reply_way = answering->way;
	bpf_ringbuf_submit(record, 0);
	return 1;
}

/* Are these the entries of one connection? */
always_inline bool peek_leads_back(const struct peek *a, const struct peek *b)
{
	return b->leaves.sport == a->key.dport && b->leaves.dport == a->key.sport &&
	       addr_equal(&b->leaves.src, &a->key.dst) && addr_equal(&b->leaves.dst, &a->key.src);
}

/* Finds both entries, and how long neither has seen a packet. 0: there is no such connection. */
__noinline int flow_find_both(struct ending *e)
{
	if (!e || !flow_peek(&e->entry))
		return 0;
	struct peek *entry = &e->entry, *pair = &e->pair;
	tuple_reverse(&entry->leaves, &pair->key);
	e->paired = flow_peek(pair) && peek_leads_back(entry, pair);
	__u32 a = idle_since(e->now, entry->seen), b = e->paired ? idle_since(e->now, pair->seen) : a;
	e->idle = a < b ? a : b;
	return 1;
}

/* The other entry of a connection, whose first one we have ended: nobody else ends it, but it may be moved or rewritten. */
always_inline void flow_free_pair(const struct peek *ended, struct peek *pair)
{
	for (int i = 0; i < PEEK_TRIES && !peek_free(pair); i++)
		if (!flow_peek(pair) || !peek_leads_back(ended, pair))
			return;
}

#define ORPHAN_MS 1000 /* an entry without its pair may be just being born */

/* Ends what flow_find_both() has found. Who ends the opening direction's entry ends the connection: the other entry is his
 * to end. 0: somebody else does, or a packet has just changed it. */
__noinline int flow_end_both(struct ending *e)
{
	if (!e)
		return 0;
	struct peek *opening = &e->entry, *answering = &e->pair;
	if (!e->paired) { /* half of a connection, unless the other half is just coming into force */
		if (e->idle <= ticks(ORPHAN_MS) || !peek_free(&e->entry))
			return 0;
		flow_count_end(FLOW_END_ORPHAN);
		return 1;
	}
	if (e->entry.state & FLOW_REPLY) {
		opening = &e->pair;
		answering = &e->entry;
	}
	if (!peek_free(opening))
		return 0;
	flow_free_pair(opening, answering);
	flow_count_end(e->why);
	flow_tell(e);
	if (e->entry.state & FLOW_ADOPTED)
		flow_account(e);
	return 1;
}

#define END_TRIES 3 /* it may just be moved or rewritten */

always_inline int flow_end(struct ending *e, const struct tuple *t, enum flow_end why)
{
	e->entry.key = *t;
	e->why = why;
	e->now = now();
	for (int i = 0; i < END_TRIES && flow_find_both(e); i++)
		if (flow_end_both(e))
			return 1;
	return 0;
}

/* ---- a full table ---- */

#define EVICT_NOBODY (~0ull)
#define IDLE_MS 1000 /* what is not TCP and was answered may be evicted when it has been idle for so long */

/* May a newcomer have this connection's place? FLOW_END_COUNT: no. The order is that in which they go. A function that is
 * verified once, and not for each slot. */
__noinline int flow_evictable(__u32 state, __u32 idle)
{
	const struct config *config = config_of(epoch_now());

	if (!config)
		return FLOW_END_COUNT;
	if (idle > flow_patience(config, state))
		return FLOW_END_EVICTED_EXPIRED;
	if (state & FLOW_ADOPTED) /* it is learned again */
		return idle > ticks(IDLE_MS) ? FLOW_END_EVICTED_IDLE : FLOW_END_COUNT;
	if ((__u8)state != IPPROTO_TCP && !state_answerer(state))
		return FLOW_END_EVICTED_HALF_OPEN;
	if ((__u8)state != IPPROTO_TCP)
		return idle > ticks(IDLE_MS) ? FLOW_END_EVICTED_IDLE : FLOW_END_COUNT;
	if (tcp_is_over(state))
		return FLOW_END_EVICTED_CLOSED;
	enum tcp_state tcp = tcp_state(state);
	return tcp == TCP_SYN_SENT || tcp == TCP_SYN_RECEIVED ? FLOW_END_EVICTED_HALF_OPEN : FLOW_END_COUNT;
}

/* The better of what was found and what stands in this bucket: lower kinds go first, among these the longest idle. */
always_inline void evict_look(struct flow_marks *marks, const int family, struct ending *e)
{
	for (__u32 slot = 0; slot < FLOW_SLOTS; slot++) {
		if (READ_ONCE(marks->mark[slot]) >> TAG_SHIFT < FLOW_TAG_FIRST)
			continue;
		const struct flow *f = table_slot(marks, family, slot);
		__u32 idle = idle_since(e->now, f->seen), kind = flow_evictable(f->state, idle);
		__u64 rank = (__u64)kind << 32 | (__u32)~idle;
		if (kind == FLOW_END_COUNT || rank >= e->rank)
			continue;
		e->rank = rank;
		flow_key(f, family, &e->entry.key);
	}
}

/* Is there a free place? One of a bucket that is spared is the other entry's. */
always_inline bool evict_needless(const struct flow_marks *marks, __u32 bucket, const struct ending *e)
{
	int taken = bucket == e->spare[0] || bucket == e->spare[1];

	return table_used(marks) + taken < FLOW_SLOTS;
}

enum flow_victim {
	FLOW_VICTIM_NONE,
	FLOW_VICTIM_NEEDLESS, /* there is a free place */
	FLOW_VICTIM_FOUND,    /* e->entry.key */
};

always_inline enum flow_victim victim(const struct birth *b, struct ending *e, const int family)
{
	const struct flow_tables *tables = flow_tables();
	__u32 table = tables->current & 1;
	struct choice choice;

	table_choose(tables, &b->key, family, table_buckets(tables, family, table), &choice);
	struct flow_marks *first = table_bucket(family, table, choice.bucket[0]);
	struct flow_marks *second = table_bucket(family, table, choice.bucket[1]);
	if (!first || !second)
		return FLOW_VICTIM_NONE;
	e->bucket[0] = choice.bucket[0];
	e->bucket[1] = choice.bucket[1];
	if (evict_needless(first, choice.bucket[0], e) || evict_needless(second, choice.bucket[1], e))
		return FLOW_VICTIM_NEEDLESS;
	e->now = now();
	e->rank = EVICT_NOBODY;
	evict_look(first, family, e);
	evict_look(second, family, e);
	return e->rank == EVICT_NOBODY ? FLOW_VICTIM_NONE : FLOW_VICTIM_FOUND;
}

__noinline int flow_victim(struct birth *b, struct ending *e)
{
	if (!b || !e)
		return FLOW_VICTIM_NONE;
	return b->key.family == FAMILY_IPV4 ? victim(b, e, FAMILY_IPV4) : victim(b, e, FAMILY_IPV6);
}

always_inline int shift(struct ending *e, __u32 bucket, __u32 slot, const int family)
{
	const struct flow_tables *tables = flow_tables();
	struct flow_marks *marks = table_bucket(family, tables->current & 1, bucket);

	keep_register(slot);
	return marks && slot < FLOW_SLOTS && table_shift(tables, marks, bucket, slot, family, e->spare, &e->pair.key);
}

/* Moves an entry out of a full bucket, to the other one that it may stand in. */
__noinline int flow_shift(struct ending *e, __u32 family, __u32 bucket, __u32 slot)
{
	if (!e)
		return 0;
	return family == FAMILY_IPV4 ? shift(e, bucket, slot, FAMILY_IPV4) : shift(e, bucket, slot, FAMILY_IPV6);
}

/* tries: how many entries are looked at, of both buckets in turns. */
always_inline bool flow_shift_any(struct birth *b, struct ending *e, __u32 tries)
{
	for (__u32 i = 0; i < 2 * FLOW_SLOTS && i < tries; i++)
		if (flow_shift(e, b->key.family, i & 1 ? e->bucket[1] : e->bucket[0], i / 2))
			return true;
	return false;
}

#define SHIFT_TRIES 4 /* before something is ended: at 80 % load one in a hundred finds nothing */

#define VICTIM_TRIES 3

/* A victim is chosen by what its entry tells alone: its pair may know of a packet that came later. Then it is one no more. */
always_inline void victim_spare(const struct ending *e)
{
	struct spot spot = {};

	if (peek_spot_any(&e->entry, &spot))
		__sync_val_compare_and_swap(&spot.flow->seen, e->entry.seen, e->now - e->idle);
}

/* Of the connection that was found; half of one may go when that is what it is. */
__noinline int flow_may_evict(struct ending *e)
{
	if (!e)
		return 0;
	e->why = flow_evictable(e->entry.state, e->idle);
	if (e->why != FLOW_END_COUNT || !e->paired)
		return 1;
	victim_spare(e);
	return 0;
}

/* Is there a place for this entry? Made by ending what has expired or is closed, by moving something away, or by ending what
 * may be ended, in this order. */
always_inline bool flow_make_room(struct birth *b, struct ending *e)
{
	for (int i = 0; i < VICTIM_TRIES; i++) {
		int found = flow_victim(b, e);
		if (found == FLOW_VICTIM_NEEDLESS)
			return true;
		if (found == FLOW_VICTIM_NONE)
			return flow_shift_any(b, e, 2 * FLOW_SLOTS);
		if (e->rank >> 32 > FLOW_END_EVICTED_CLOSED && flow_shift_any(b, e, SHIFT_TRIES))
			return true;
		if (flow_find_both(e) && flow_may_evict(e) && flow_end_both(e))
			return true;
	}
	return false;
}

/* For both entries of a connection: what is moved away for the second one does not take the place of the first, nor does the
 * second one itself, where both may stand in the same bucket. */
always_inline bool flow_make_room_both(struct birth *forward, struct birth *answer, struct ending *e)
{
	e->spare[0] = e->spare[1] = NO_BUCKET;
	if (!flow_make_room(answer, e))
		return false;
	e->spare[0] = e->bucket[0];
	e->spare[1] = e->bucket[1];
	return flow_make_room(forward, e);
}

/* ---- the beginning of one ---- */

__noinline int flow_place(struct birth *b)
{
	const struct flow_tables *tables = flow_tables();

	if (!b)
		return FLOW_FULL;
	return b->key.family == FAMILY_IPV4 ? table_place(tables, b, FAMILY_IPV4) : table_place(tables, b, FAMILY_IPV6);
}

/* Both entries written, and not yet in force. The reply's comes first: only one CPU can win its key. */
always_inline enum flow_result flow_place_both(struct birth *forward, struct birth *answer)
{
	int result = flow_place(answer);

	if (result != FLOW_CREATED)
		return result == FLOW_EXISTS ? FLOW_TAKEN : FLOW_FULL;
	result = flow_place(forward);
	if (result != FLOW_CREATED)
		table_withdraw(answer);
	return result;
}

/* Neither counts before both are there. CREATED: both are in force, and locked. */
__noinline int flow_commit_both(struct birth *forward, struct birth *answer)
{
	if (!forward || !answer)
		return FLOW_FULL;
	if (!table_commit(answer)) {
		table_withdraw(forward);
		return FLOW_TAKEN;
	}
	if (table_commit(forward))
		return FLOW_CREATED;
	table_release(answer, false);
	return FLOW_EXISTS;
}

/* Both stay, or are gone again. Who ends a connection begins with the opening direction's entry: by then the other one
 * must not be locked. */
__noinline int flow_release_both(struct birth *forward, struct birth *answer, __u32 stay)
{
	if (!forward || !answer)
		return 0;
	table_release(answer, stay);
	table_release(forward, stay);
	return 1;
}

#define OPEN_TRIES 2

/* Who opens the same connection on another CPU may end our reply's entry, and give way to the other one then: once more. */
always_inline enum flow_result flow_open(struct birth *forward, struct birth *answer)
{
	int result = FLOW_TAKEN;

	for (int i = 0; i < OPEN_TRIES && result == FLOW_TAKEN; i++) {
		result = flow_place_both(forward, answer);
		if (result != FLOW_CREATED)
			return result;
		result = flow_commit_both(forward, answer);
	}
	if (result == FLOW_CREATED)
		flow_release_both(forward, answer, true);
	return result;
}

/* Opens a connection that leaves as it is: forward->leaves with the source that it has. TAKEN: its replies would be another's. */
__noinline int flow_open_plain(struct birth *forward, struct birth *answer, struct ending *e)
{
	if (!forward || !answer || !e)
		return FLOW_FULL;
	tuple_reverse(&forward->key, &answer->leaves);
	tuple_reverse(&forward->leaves, &answer->key);
	int result = flow_open(forward, answer);
	if (result == FLOW_FULL && flow_make_room_both(forward, answer, e))
		result = flow_open(forward, answer);
	return result;
}

/* The same, for a connection that nobody makes way for: Linux carries it as well. */
__noinline int flow_open_adopted(struct birth *forward, struct birth *answer)
{
	if (!forward || !answer)
		return FLOW_FULL;
	tuple_reverse(&forward->key, &answer->leaves);
	tuple_reverse(&forward->leaves, &answer->key);
	return flow_open(forward, answer);
}
