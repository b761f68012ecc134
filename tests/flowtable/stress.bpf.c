// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The flow table under load. Many operations in a row on a few connections, by as many CPUs as run it, each as a packet would: a TC program, so that
 * the kernel's rules for packets hold (a table that was exchanged lives on until they are through).
 *
 * All that an entry says follows from the connection's number, so that a mixture of two entries, or of two lives of
 * one, shows. */
#include "sweep.bpf.c"

#define WORKERS 4
#define WAYS 4		 /* in so many ways each connection may be translated */
#define RESIDENTS 32	 /* connections that nobody ends: they are always found, and their counters are exact */
#define RESIDENT_APART 8 /* from one's number to the next one's: all are of the kind that is not evicted */
#define TC_OK 0

enum operation {
	OPERATION_HIT,	/* as the hit path does it */
	OPERATION_PEEK, /* as the slow path does */
	OPERATION_BOTH, /* both entries of a connection */
	OPERATION_OPEN,
	OPERATION_OPEN_ROOM,  /* and evict, if the table is full */
	OPERATION_END,	      /* by the opening direction's key */
	OPERATION_END_ANSWER, /* by the other one */
	OPERATION_REWRITE,    /* the next hop */
	OPERATION_CARRY,      /* a packet of a resident goes by */
	OPERATION_TWICE,      /* is a key in force twice? */
	OPERATION_COUNT,
};

/* What is worked on. */
struct subject {
	struct tuple key;
	__u32 number;
	__u32 way;
	bool reply;
	bool resident;
};

/* One worker's orders, and what it has seen. */
struct stress {
	__u32 family;
	__u32 random;		       /* state of its generator, never 0 */
	__u32 keys;		       /* connections that come and go: number 0 and up, a multiple of RESIDENT_APART */
	__u32 residents;	       /* connections that stay */
	__u32 chance[OPERATION_COUNT]; /* out of 256, added up */
	__u32 reply;		       /* the direction of residents that this worker carries packets of */
	__u32 operations;	       /* in a row */
	__u64 done[OPERATION_COUNT];   /* out, and so all that follows */
	__u64 found;		       /* entries */
	__u64 mixed;		       /* entries that said what no connection says */
	__u64 vanished;		       /* residents that were not there */
	__u64 halves;		       /* residents whose other half was not there */
	__u64 twice;		       /* keys in force twice */
	__u64 results[FLOW_FULL + 1];  /* of opening, by enum flow_result */
	__u64 ended;
	__u64 rewritten;
	__u64 packets[RESIDENTS]; /* by resident */
	__u64 bytes[RESIDENTS];
	__u32 mixed_number; /* of the first one that was mixed, and so the next two */
	__u32 mixed_where;  /* enum operation; + 256: answering direction */
	struct verdict mixed_verdict;
	struct subject on; /* scratch from here on: too large for the stack */
	struct tuple client;
	struct tuple leaves;
	struct tuple back;
	struct verdict verdict;
	struct work work;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WORKERS);
	__type(key, __u32);
	__type(value, struct stress);
} stress_rows SEC(".maps");

/* xorshift32 (Marsaglia) */
always_inline __u32 random_next(struct stress *s)
{
	__u32 x = s->random;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	s->random = x;
	return x;
}

/* ---- what belongs to a connection's number ---- */

always_inline void number_address(const int family, __u32 net, __u32 number, union addr *out)
{
	union addr none = {};

	*out = none;
	if (family == FAMILY_IPV4) {
		out->v4 = bpf_htonl(net << 24 | number);
		return;
	}
	out->words[0] = bpf_htonl(0x20010db8);
	out->words[1] = bpf_htonl(net);
	out->words[2] = bpf_htonl(number * 0x9e3779b1);
	out->words[3] = bpf_htonl(number);
}

/* Two neighbours are of the same kind, and want the same translated tuple. 0: UDP, 1: TCP established, 2: half-open,
 * 3: reset. */
always_inline __u32 number_kind(__u32 number)
{
	return number >> 1 & 3;
}

always_inline __u8 number_proto(__u32 number)
{
	return number_kind(number) ? IPPROTO_TCP : IPPROTO_UDP;
}

always_inline void number_client(const int family, __u32 number, struct tuple *t)
{
	number_address(family, 10, number, &t->src);
	number_address(family, 20, number & 7, &t->dst);
	t->sport = bpf_htons(1024 + number);
	t->dport = bpf_htons(80);
	t->proto = number_proto(number);
	t->family = family;
	t->pad[0] = t->pad[1] = 0;
}

always_inline void number_leaves(const int family, __u32 number, __u32 way, struct tuple *t)
{
	number_address(family, 30, way, &t->src);
	number_address(family, 40, number >> 1, &t->dst);
	t->sport = bpf_htons(20000 + way);
	t->dport = bpf_htons(1024 + (number >> 1));
	t->proto = number_proto(number);
	t->family = family;
	t->pad[0] = t->pad[1] = 0;
}

/* Which of the neighbours it is and how it is translated stands where other connections have their window scale. */
always_inline __u32 number_state(__u32 number, __u32 way, bool reply)
{
	const __u32 opener[] = {FLOW_SENT_ACK, FLOW_SENT_SYN | FLOW_SENT_ACK, FLOW_SENT_SYN,
				FLOW_SENT_ACK | FLOW_SENT_RST};
	const __u32 answerer[] = {FLOW_SENT_ACK, FLOW_SENT_SYN | FLOW_SENT_ACK, 0, FLOW_SENT_ACK};
	__u32 kind = number_kind(number);
	__u32 sent = reply ? answerer[kind] : opener[kind], heard = reply ? opener[kind] : answerer[kind];

	return number_proto(number) | sent | heard << (FLOW_HEARD_SHIFT - FLOW_SENT_SHIFT) | (reply ? FLOW_REPLY : 0) |
	       ((number & 1) << 2 | (way & 3)) << FLOW_SCALE_SHIFT;
}

/* Any next hop of this connection: all of it follows from its stamp. */
always_inline void number_hop(__u32 number, __u32 way, bool reply, __u32 stamp, struct flow *hop)
{
	__u32 a = mix(stamp, number << 3 | way << 1 | reply), b = mix(a, stamp);

	hop->stamp = stamp;
	hop->egress = a;
	hop->mtu = a >> 16;
	*(__u32 *)hop->dmac = b;
	*(__u16 *)(hop->dmac + 4) = ~b;
}

always_inline __u32 number_endpoint(__u32 number, __u32 way)
{
	return number << 4 | way;
}

always_inline __u32 number_nat(__u32 number, __u32 way, bool reply)
{
	return mix(number, way << 1 | reply) & 0xff;
}

/* ---- is what an entry says one connection's? ---- */

/* By what it says. asked: as it was looked for; the answering direction does not know which of the neighbours has it. */
always_inline __u32 stress_number(__u32 asked, bool reply, __u32 state)
{
	return reply ? (asked & ~1u) | (state >> FLOW_SCALE_SHIFT >> 2 & 1) : asked;
}

always_inline bool stress_leaves(struct stress *s, const int family, __u32 number, bool reply, const struct verdict *v)
{
	const struct tuple *to = reply ? &s->back : &s->leaves;

	number_client(family, number, &s->client);
	number_leaves(family, number, v->state >> FLOW_SCALE_SHIFT & 3, &s->leaves);
	tuple_reverse(&s->client, &s->back);
	if (v->sport != to->sport || v->dport != to->dport)
		return false;
	if (family == FAMILY_IPV4)
		return v->src.v4 == to->src.v4 && v->dst.v4 == to->dst.v4;
	return addr_equal(&v->src, &to->src) && addr_equal(&v->dst, &to->dst);
}

always_inline bool stress_hop(__u32 number, bool reply, const struct verdict *v)
{
	struct flow hop = {};

	number_hop(number, v->state >> FLOW_SCALE_SHIFT & 3, reply, v->stamp, &hop);
	return v->egress == hop.egress && v->mtu == hop.mtu && *(__u32 *)v->dmac == *(__u32 *)hop.dmac &&
	       *(__u16 *)(v->dmac + 4) == *(__u16 *)(hop.dmac + 4);
}

/* A next hop without a stamp counts for nobody. */
always_inline bool stress_is_one(struct stress *s, const int family, __u32 number, bool reply, const struct verdict *v)
{
	__u32 way = v->state >> FLOW_SCALE_SHIFT & 3;

	if ((v->state & ~(__u32)FLOW_FOLDED) != number_state(number, way, reply))
		return false;
	return stress_leaves(s, family, number, reply, v) && (!v->stamp || stress_hop(number, reply, v));
}

always_inline bool stress_rare_is_one(__u32 number, bool reply, const struct peek *peek)
{
	__u32 way = peek->state >> FLOW_SCALE_SHIFT & 3;

	return peek->nat == number_nat(number, way, reply) && (reply || peek->rare == number_endpoint(number, way));
}

/* Something was found. asked: the number it was looked for by. peek: NULL where only the verdict is known. */
always_inline void stress_found(struct stress *s, const int family, __u32 asked, bool reply, const struct verdict *v,
				const struct peek *peek, enum operation where)
{
	__u32 number = stress_number(asked, reply, v->state);

	s->found++;
	if (stress_is_one(s, family, number, reply, v) && (!peek || stress_rare_is_one(number, reply, peek)))
		return;
	if (!s->mixed++) {
		s->mixed_number = asked;
		s->mixed_where = where | reply << 8;
		s->mixed_verdict = *v;
	}
}

/* ---- operations ---- */

/* What packets of this connection's direction arrive with. */
always_inline void stress_key(struct stress *s, const int family)
{
	struct subject *on = &s->on;

	if (!on->reply) {
		number_client(family, on->number, &on->key);
		return;
	}
	number_leaves(family, on->number, on->way, &s->leaves);
	tuple_reverse(&s->leaves, &on->key);
}

always_inline void stress_choose_resident(struct stress *s, const int family, __u32 index, bool reply)
{
	struct subject *on = &s->on;

	on->resident = true;
	on->number = s->keys + index * RESIDENT_APART + 2;
	on->way = 0;
	on->reply = reply;
	stress_key(s, family);
}

always_inline void stress_choose(struct stress *s, const int family, bool may_stay)
{
	struct subject *on = &s->on;
	__u32 r = random_next(s), among = s->keys + (may_stay ? s->residents : 0), n = (__u64)r * among >> 32;

	r = random_next(s);
	if (n >= s->keys) {
		stress_choose_resident(s, family, n - s->keys, r >> 2 & 1);
		return;
	}
	on->resident = false;
	on->number = n;
	on->way = r & 3;
	on->reply = r >> 2 & 1;
	stress_key(s, family);
}

/* Who is just given another next hop is no hit, and who stands in a table that was exchanged is none either. */
always_inline void stress_hit(struct stress *s, const int family)
{
	struct verdict *v = &s->verdict;
	__u64 hash;

	stress_choose(s, family, true);
	if (!flow_hit(&s->on.key, v, &hash))
		return;
	stress_found(s, family, s->on.number, s->on.reply, v, NULL, OPERATION_HIT);
}

/* The entry of a packet's direction; if there is none, and this is one that stays, that is noted. */
always_inline struct peek *stress_find(struct stress *s)
{
	struct peek *peek = &s->work.ending.entry;

	peek->key = s->on.key;
	if (flow_peek(peek))
		return peek;
	s->vanished += s->on.resident;
	return NULL;
}

always_inline void stress_peek(struct stress *s, const int family)
{
	stress_choose(s, family, true);
	const struct peek *peek = stress_find(s);

	if (peek)
		stress_found(s, family, s->on.number, s->on.reply, &peek->verdict, peek, OPERATION_PEEK);
}

always_inline void stress_both(struct stress *s, const int family)
{
	struct ending *e = &s->work.ending;
	const struct subject *on = &s->on;

	stress_choose(s, family, true);
	e->entry.key = on->key;
	e->now = now();
	if (!flow_find_both(e)) {
		s->vanished += on->resident;
		return;
	}
	s->halves += on->resident && !e->paired;
	stress_found(s, family, on->number, on->reply, &e->entry.verdict, &e->entry, OPERATION_BOTH);
	if (!e->paired)
		return;
	__u32 number = stress_number(on->number, on->reply, e->entry.state);
	stress_found(s, family, number, !on->reply, &e->pair.verdict, &e->pair, OPERATION_BOTH);
}

always_inline void stress_birth(struct stress *s, const int family, bool reply, __u32 stamp, struct birth *b)
{
	const struct subject *on = &s->on;

	number_client(family, on->number, &s->client);
	number_leaves(family, on->number, on->way, &s->leaves);
	if (reply) {
		tuple_reverse(&s->leaves, &b->key);
		tuple_reverse(&s->client, &b->leaves);
	} else {
		b->key = s->client;
		b->leaves = s->leaves;
	}
	__builtin_memset(&b->flow, 0, sizeof(b->flow));
	b->flow.state = number_state(on->number, on->way, reply);
	b->flow.seen = now();
	number_hop(on->number, on->way, reply, stamp, &b->flow);
	b->rare = reply ? now() : number_endpoint(on->number, on->way);
	b->nat = number_nat(on->number, on->way, reply);
	b->moving = 0;
}

/* The connection that was chosen. room: evict, if the table is full. */
never_inline void stress_open(struct stress *s, const int family, bool room)
{
	struct work *work = &s->work;
	__u32 stamp = random_next(s);

	stress_birth(s, family, false, stamp, &work->forward);
	stress_birth(s, family, true, ~stamp, &work->answer);
	int result = flow_open(&work->forward, &work->answer);
	if (result == FLOW_FULL && room && flow_make_room_both(&work->forward, &work->answer, &work->ending))
		result = flow_open(&work->forward, &work->answer);
	if (result >= FLOW_CREATED && result <= FLOW_FULL)
		s->results[result]++;
}

always_inline void stress_end(struct stress *s, const int family, bool reply)
{
	stress_choose(s, family, false);
	s->on.reply = reply;
	stress_key(s, family);
	s->ended += flow_end(&s->work.ending, &s->on.key, FLOW_END_REOPENED);
}

/* As known.h does it for packets whose next hop was resolved under an older generation. */
always_inline void stress_rewrite(struct stress *s, const int family)
{
	struct flow hop = {};

	stress_choose(s, family, true);
	struct peek *peek = stress_find(s);
	if (!peek)
		return;
	struct verdict *v = &peek->verdict;
	__u32 number = stress_number(s->on.number, s->on.reply, v->state), way = v->state >> FLOW_SCALE_SHIFT & 3;
	number_hop(number, way, s->on.reply, random_next(s), &hop);
	v->egress = hop.egress;
	v->mtu = hop.mtu;
	__builtin_memcpy(v->dmac, hop.dmac, sizeof(v->dmac));
	v->stamp = hop.stamp;
	s->rewritten += flow_resolve(peek);
}

/* Packets so large that their sum turns over every few. */
always_inline void stress_carry(struct stress *s, const int family)
{
	__u32 r = random_next(s), index = (__u64)r * s->residents >> 32, bytes = random_next(s) & 0x3fffffff;

	stress_choose_resident(s, family, index, s->reply);
	struct peek *peek = stress_find(s);
	if (!peek)
		return;
	if (!flow_refresh(peek, bytes)) /* it has just moved */
		return;
	keep_register(index);
	if (index < RESIDENTS) {
		s->packets[index]++;
		s->bytes[index] += bytes;
	}
}

/* Two entries of one key that were both in force at one moment: the first one was still, after the second one was seen. An
 * entry that is just moving is there twice, but locked in one of its places. */
always_inline bool stress_in_bucket(struct flow_marks *marks, const struct tuple *key, __u32 tag, const int family,
				    __u32 **first, __u32 *first_mark)
{
	for (__u32 slot = 0; slot < FLOW_SLOTS; slot++) {
		__u32 mark = READ_ONCE(marks->mark[slot]);
		if (mark >> TAG_SHIFT != tag || mark_locked(mark) ||
		    !flow_is(table_slot(marks, family, slot), key, family))
			continue;
		if (READ_ONCE(marks->mark[slot]) != mark)
			continue;
		if (*first && READ_ONCE(**first) == *first_mark)
			return true;
		*first = &marks->mark[slot];
		*first_mark = mark;
	}
	return false;
}

always_inline void stress_twice(struct stress *s, const int family)
{
	const struct flow_tables *tables = flow_tables();
	__u32 *first = NULL, first_mark = 0;
	struct choice choice;

	stress_choose(s, family, true);
	__u32 table = tables->current & 1;
	table_choose(tables, &s->on.key, family, table_buckets(tables, family, table), &choice);
	struct flow_marks *one = table_bucket(family, table, choice.bucket[0]);
	struct flow_marks *two = table_bucket(family, table, choice.bucket[1]);
	if (!one || !two)
		return;
	if (stress_in_bucket(one, &s->on.key, choice.tag, family, &first, &first_mark) ||
	    stress_in_bucket(two, &s->on.key, choice.tag, family, &first, &first_mark))
		s->twice++;
}

always_inline void stress_do(struct stress *s, enum operation operation, const int family)
{
	switch (operation) {
	case OPERATION_HIT:
		stress_hit(s, family);
		break;
	case OPERATION_PEEK:
		stress_peek(s, family);
		break;
	case OPERATION_BOTH:
		stress_both(s, family);
		break;
	case OPERATION_OPEN:
	case OPERATION_OPEN_ROOM:
		stress_choose(s, family, false);
		stress_open(s, family, operation == OPERATION_OPEN_ROOM);
		break;
	case OPERATION_END:
	case OPERATION_END_ANSWER:
		stress_end(s, family, operation == OPERATION_END_ANSWER);
		break;
	case OPERATION_REWRITE:
		stress_rewrite(s, family);
		break;
	case OPERATION_CARRY:
		stress_carry(s, family);
		break;
	default:
		stress_twice(s, family);
	}
}

always_inline long stress_once(struct stress *s, const int family)
{
	__u32 r = random_next(s) & 0xff, operation;

	for (operation = 0; operation < OPERATION_COUNT - 1; operation++)
		if (r < s->chance[operation])
			break;
	keep_register(operation);
	if (operation < OPERATION_COUNT)
		s->done[operation]++;
	stress_do(s, operation, family);
	return 0;
}

static long stress_once4(__u32 index, struct stress **s)
{
	return stress_once(*s, FAMILY_IPV4);
}

static long stress_once6(__u32 index, struct stress **s)
{
	return stress_once(*s, FAMILY_IPV6);
}

/* mark: the worker. What the packet is does not matter. */
SEC("tc") int stress(struct __sk_buff *skb)
{
	__u32 worker = skb->mark;
	struct stress *s = bpf_map_lookup_elem(&stress_rows, &worker);

	if (!s)
		return TC_OK;
	if (s->family == FAMILY_IPV4)
		bpf_loop(s->operations, stress_once4, &s, 0);
	else
		bpf_loop(s->operations, stress_once6, &s, 0);
	return TC_OK;
}

static long stress_resident4(__u32 index, struct stress **s)
{
	stress_choose_resident(*s, FAMILY_IPV4, index, false);
	stress_open(*s, FAMILY_IPV4, false);
	return 0;
}

static long stress_resident6(__u32 index, struct stress **s)
{
	stress_choose_resident(*s, FAMILY_IPV6, index, false);
	stress_open(*s, FAMILY_IPV6, false);
	return 0;
}

/* Opens the connections that stay. */
SEC("tc") int settle(struct __sk_buff *skb)
{
	__u32 worker = skb->mark;
	struct stress *s = bpf_map_lookup_elem(&stress_rows, &worker);

	if (!s)
		return TC_OK;
	if (s->family == FAMILY_IPV4)
		bpf_loop(s->residents, stress_resident4, &s, 0);
	else
		bpf_loop(s->residents, stress_resident6, &s, 0);
	return TC_OK;
}

/* For tests, by name from BTF. */
const volatile union {
	enum operation operation;
} test_types = {};
