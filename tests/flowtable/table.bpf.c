// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The flow table without packets: each of its operations as a program that a test runs. The table, the sweep and the move are the data path's own text, but that the clock can be set ahead, and
 * that a program can be held at any of its look-ups. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#include "hold.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} clock_ahead SEC(".maps"); /* jiffies */

static inline __attribute__((always_inline)) __u64 jiffies_ahead(void)
{
	__u32 zero = 0;
	const __u64 *ahead = bpf_map_lookup_elem(&clock_ahead, &zero);

	return bpf_jiffies64() + (ahead ? *ahead : 0);
}

#define bpf_jiffies64 jiffies_ahead
#define bpf_map_lookup_elem(MAP, KEY) (hold(), bpf_map_lookup_elem(MAP, KEY))
#include "sweep.bpf.c"

/* What a program with arguments is working out: one on each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} bench SEC(".maps");

always_inline struct work *bench_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bench, &zero);
}

/* ---- open ---- */

struct open_args {
	struct tuple client;
	struct tuple leaves;
	struct flow forward; /* all but ports */
	struct flow answer;
	__u32 endpoint;
	__u32 created;
	__u32 nat;
	__u32 make_room; /* if the table is full, at the cost of others: as nat.h does it */
	__u32 result;	 /* out: enum flow_result */
	__u32 pad;
};

SEC("syscall") int open(struct open_args *args)
{
	struct work *work = bench_get();

	if (!work)
		return 1;
	struct birth *forward = &work->forward, *answer = &work->answer;
	forward->key = args->client;
	forward->leaves = args->leaves;
	tuple_reverse(&forward->leaves, &answer->key);
	tuple_reverse(&forward->key, &answer->leaves);
	forward->flow = args->forward;
	answer->flow = args->answer;
	forward->rare = args->endpoint;
	answer->rare = args->created;
	forward->nat = args->nat & 0xff;
	answer->nat = args->nat >> 8;
	forward->moving = answer->moving = 0;
	int result = flow_open(forward, answer);
	if (result == FLOW_FULL && args->make_room && flow_make_room_both(forward, answer, &work->ending))
		result = flow_open(forward, answer);
	args->result = result;
	return 0;
}

/* ---- look: what one entry says ---- */

struct look_args {
	struct tuple key;
	__u32 found;  /* out, and so all that follows */
	__u32 paired; /* with an entry that leads back */
	struct tuple leaves;
	struct carried carried;
	__u32 state;
	__u32 seen;
	__u32 rare;
	__u32 nat;
	__u32 table;
	__u32 bucket;
	__u32 slot;
	__u32 mark;
	__u32 idle;
	__u32 hit;   /* the hit path finds it as well, and says the same */
	__u32 stamp; /* of its next hop */
	__u32 mtu;
	__u32 egress;
};

always_inline bool look_hit(const struct peek *peek)
{
	struct verdict v = {};
	__u64 hash;

	if (!flow_hit(&peek->key, &v, &hash) || v.sport != peek->leaves.sport || v.dport != peek->leaves.dport)
		return false;
	if (peek->key.family == FAMILY_IPV4)
		return v.src.v4 == peek->leaves.src.v4 && v.dst.v4 == peek->leaves.dst.v4;
	return addr_equal(&v.src, &peek->leaves.src) && addr_equal(&v.dst, &peek->leaves.dst);
}

SEC("syscall") int look(struct look_args *args)
{
	struct work *work = bench_get();

	if (!work)
		return 1;
	struct ending *e = &work->ending;
	struct peek *peek = &e->entry;
	peek->key = args->key;
	e->now = now();
	args->found = flow_find_both(e);
	if (!args->found)
		return 0;
	args->paired = e->paired;
	args->leaves = peek->leaves;
	args->carried = peek->carried;
	args->state = peek->state;
	args->seen = peek->seen;
	args->rare = peek->rare;
	args->nat = peek->nat;
	args->table = peek->table;
	args->bucket = peek->bucket;
	args->slot = peek->slot;
	args->mark = peek->mark;
	args->idle = e->idle;
	args->stamp = peek->verdict.stamp;
	args->mtu = peek->verdict.mtu;
	args->egress = peek->verdict.egress;
	args->hit = look_hit(peek);
	return 0;
}

/* ---- end ---- */

struct end_args {
	struct tuple key; /* of either direction */
	__u32 why;
	__u32 ended; /* out */
};

SEC("syscall") int end(struct end_args *args)
{
	struct work *work = bench_get();
	struct tuple key = args->key;

	if (!work)
		return 1;
	args->ended = flow_end(&work->ending, &key, args->why);
	return 0;
}

/* ---- carry: packets go by ---- */

struct carry_args {
	struct tuple key;
	__u32 bytes; /* of each packet */
	__u32 packets;
	__u32 found; /* out */
	__u32 pad;
};

struct carry {
	struct peek *peek;
	__u32 bytes;
};

static long carry_packet(__u32 index, struct carry *carry)
{
	return !flow_refresh(carry->peek, carry->bytes);
}

SEC("syscall") int carry(struct carry_args *args)
{
	struct work *work = bench_get();

	if (!work)
		return 1;
	struct carry carry = {.peek = &work->ending.entry, .bytes = args->bytes};
	carry.peek->key = args->key;
	args->found = flow_peek(carry.peek);
	if (args->found)
		bpf_loop(args->packets, carry_packet, &carry, 0);
	return 0;
}

/* ---- resolve: another next hop ---- */

struct resolve_args {
	struct tuple key;
	__u32 stamp;
	__u32 mtu;
	__u32 egress;
	__u32 resolved; /* out */
};

SEC("syscall") int resolve(struct resolve_args *args)
{
	struct work *work = bench_get();

	if (!work)
		return 1;
	struct peek *peek = &work->ending.entry;
	peek->key = args->key;
	args->resolved = 0;
	if (!flow_peek(peek))
		return 0;
	peek->verdict.stamp = args->stamp;
	peek->verdict.mtu = args->mtu;
	peek->verdict.egress = args->egress;
	args->resolved = flow_resolve(peek);
	return 0;
}

/* ---- reuse: the same connection opened, found and ended, many times over ---- */

struct reuse_args {
	struct open_args open;
	__u32 times;
	__u32 turns; /* and its next hop rewritten, so often each time */
	__u32 wrong; /* out: times that anything was not as it should have been */
	__u32 pad;
};

struct reuse {
	struct work *work;
	__u32 turns;
	__u32 wrong;
};

static long reuse_turn(__u32 index, struct reuse *reuse)
{
	struct verdict v = {};
	__u64 hash;
	struct peek *peek = &reuse->work->ending.entry;

	peek->key = reuse->work->forward.key;
	if (!flow_peek(peek) || !flow_resolve(peek) || !flow_hit(&peek->key, &v, &hash))
		reuse->wrong++;
	return 0;
}

static long reuse_once(__u32 index, struct reuse *reuse)
{
	struct work *work = reuse->work;
	struct ending *e = &work->ending;
	struct verdict v = {};
	__u64 hash;

	if (flow_open(&work->forward, &work->answer) != FLOW_CREATED || !flow_hit(&work->forward.key, &v, &hash) ||
	    !flow_hit(&work->answer.key, &v, &hash))
		reuse->wrong++;
	bpf_loop(reuse->turns, reuse_turn, reuse, 0);
	e->entry.key = work->answer.key;
	if (!flow_find_both(e) || !e->paired || flow_end(e, &work->answer.key, FLOW_END_REOPENED) != 1 ||
	    flow_hit(&work->forward.key, &v, &hash) || flow_hit(&work->answer.key, &v, &hash))
		reuse->wrong++;
	return 0;
}

SEC("syscall") int reuse(struct reuse_args *args)
{
	struct reuse reuse = {.work = bench_get(), .turns = args->turns};
	struct work *work = reuse.work;

	if (!work)
		return 1;
	work->forward.key = args->open.client;
	work->forward.leaves = args->open.leaves;
	tuple_reverse(&work->forward.leaves, &work->answer.key);
	tuple_reverse(&work->forward.key, &work->answer.leaves);
	work->forward.flow = args->open.forward;
	work->answer.flow = args->open.answer;
	work->forward.rare = work->answer.rare = work->forward.nat = work->answer.nat = 0;
	work->forward.moving = work->answer.moving = 0;
	bpf_loop(args->times, reuse_once, &reuse, 0);
	args->wrong = reuse.wrong;
	return 0;
}

/* ---- idle: the arithmetic of time ---- */

struct idle_args {
	__u32 now;
	__u32 seen;
	__u32 idle; /* out */
};

SEC("syscall") int idle(struct idle_args *args)
{
	args->idle = idle_since(args->now, args->seen);
	return 0;
}

/* ---- hold: see hold.h ---- */

struct hold_on_args {
	__u32 after; /* not 0: hold who comes to that many look-ups from now on */
	__u32 go;    /* let go */
	__u32 held;  /* out: somebody is */
	__u32 left;  /* out: look-ups to go */
};

SEC("syscall") int hold_on(struct hold_on_args *args)
{
	if (args->after) {
		hold_now.go = hold_now.held = 0;
		hold_now.left = args->after;
	}
	if (args->go) {
		hold_now.left = 0;
		hold_now.go = 1;
	}
	args->held = hold_now.held;
	args->left = hold_now.left;
	return 0;
}

/* For tests, by name from BTF. */
const volatile union {
	enum flow_result flow_result;
} test_types = {};
