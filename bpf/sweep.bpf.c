// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the daemon has done inside the kernel, so that nothing is copied out: `sweep` removes what has been idle for too
 * long or whose endpoint is gone, a part of the table at a time; `move` brings connections from a table that was replaced to the
 * current one; `release` ends an adopted connection that Linux has deleted; `clock` tells the loader what a jiffy is and a reader what time it is. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "types.h"
#include "reasons.h"
#include "maps.h"
#include "util.h"
#include "inforce.h"
#include "state.h"
#include "table.h"
#include "flow.h"
#include "service.h"

/* What these programs are just working out. Not the packet programs' scratch: they interrupt these. */
enum work_index {
	WORK_SWEEP,
	WORK_MOVE,
	WORK_RELEASE,
	WORK_COUNT,
};

struct work {
	struct ending ending;
	struct birth forward;
	struct birth answer;
	struct ending evicted; /* makes way for what moves */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WORK_COUNT);
	__type(key, __u32);
	__type(value, struct work);
} work SEC(".maps");

always_inline struct work *work_get(__u32 index)
{
	return bpf_map_lookup_elem(&work, &index);
}

/* ---- sweep ---- */

struct sweep {
	struct sweep_args *args;
	const struct config *config;
	struct work *work;
	__u32 now;
};

/* Is an opening entry's endpoint another one now, or none? One look-up, which does not tell services apart that share an
 * endpoint: whoever asks for the pair asks for all (sweep_is_gone). */
always_inline bool sweep_may_be_gone(const struct flow_marks *marks, __u32 slot, const struct flow *f, const int family)
{
	if ((f->state & (FLOW_HAS_SERVICE | FLOW_REPLY)) != FLOW_HAS_SERVICE)
		return false;
	__u32 id = marks->rare[slot];
	const struct endpoint *endpoint = bpf_map_lookup_elem(&endpoint_v1, &id);
	if (!endpoint || endpoint->state == ENDPOINT_FREE || endpoint->family != family || endpoint->port != f->dport)
		return true;
	if (family == FAMILY_IPV4)
		return endpoint->address.v4 != ((const struct flow4 *)f)->dst;
	return !addr_equal(&endpoint->address, &((const struct flow6 *)f)->dst);
}

/* Has the connection's endpoint been removed? The epoch is read after the flow was found, so its rows know the flow's
 * endpoint; and once more, because nobody waits for this program before they are cleared away. A function that is verified
 * once, and not for each slot. */
__noinline int sweep_is_gone(struct ending *e)
{
	__u32 epoch = epoch_now();

	return e && e->paired && !service_keeps(epoch, e) && epoch_now() == epoch;
}

/* A connection that has been idle for too long, or lost its endpoint, as far as this entry knows. If its pair has seen a
 * packet, this entry takes over the time, so that it is not asked for again before that has passed. */
always_inline void sweep_both(struct sweep *sweep, struct flow *f, __u32 seen, const int family)
{
	struct ending *e = &sweep->work->ending;

	flow_key(f, family, &e->entry.key);
	e->now = sweep->now;
	if (!flow_find_both(e))
		return;
	__u32 patience = e->paired ? flow_patience(sweep->config, e->entry.state) : ticks(ORPHAN_MS);
	if (e->idle > patience) {
		e->why = FLOW_END_EXPIRED;
	} else if (sweep_is_gone(e)) {
		e->why = FLOW_END_ENDPOINT_GONE;
	} else {
		__sync_val_compare_and_swap(&f->seen, seen, sweep->now - e->idle);
		return;
	}
	if (flow_end_both(e) && e->paired)
		sweep->args->expired++;
}

always_inline long sweep_bucket(__u32 index, struct sweep *sweep, const int family)
{
	__u32 bucket = sweep->args->first + index;
	struct flow_marks *marks = table_bucket(family, sweep->args->table & 1, bucket);
	bool look = sweep->args->every && bucket % sweep->args->every == sweep->args->turn;

	if (!marks)
		return 1;
	for (__u32 slot = 0; slot < FLOW_SLOTS; slot++) {
		if (READ_ONCE(marks->mark[slot]) >> TAG_SHIFT < FLOW_TAG_FIRST)
			continue;
		struct flow *f = table_slot(marks, family, slot);
		__u32 state = f->state, seen = f->seen;
		if (!(state & FLOW_REPLY))
			sweep->args->visited++;
		if (look || idle_since(sweep->now, seen) > flow_patience(sweep->config, state) ||
		    sweep_may_be_gone(marks, slot, f, family))
			sweep_both(sweep, f, seen, family);
	}
	return 0;
}

static long sweep_bucket4(__u32 index, struct sweep *sweep)
{
	return sweep_bucket(index, sweep, FAMILY_IPV4);
}

static long sweep_bucket6(__u32 index, struct sweep *sweep)
{
	return sweep_bucket(index, sweep, FAMILY_IPV6);
}

SEC("syscall") int sweep(struct sweep_args *args)
{
	struct sweep sweep = {
		.args = args, .config = config_of(epoch_now()), .work = work_get(WORK_SWEEP), .now = now()};

	args->visited = args->expired = 0;
	if (!sweep.config || !sweep.work)
		return 0;
	if (args->family == FAMILY_IPV4)
		bpf_loop(args->buckets, sweep_bucket4, &sweep, 0);
	else
		bpf_loop(args->buckets, sweep_bucket6, &sweep, 0);
	return 0;
}

/* ---- move: from a table that was replaced to the current one ---- */

struct move {
	struct move_args *args;
	struct work *work;
	__u32 table;
	__u32 moved;
	__u32 left;
};

/* The entry that was copied, where it stands now. */
always_inline struct flow *move_entry(const struct peek *peek, const int family)
{
	return table_slot_within(table_bucket(family, peek->table & 1, peek->bucket), family, peek->slot);
}

always_inline __u32 move_mark(const struct peek *peek, const int family)
{
	struct flow_marks *marks = table_bucket(family, peek->table & 1, peek->bucket);

	return marks ? READ_ONCE(*table_mark(marks, peek->slot)) : 0;
}

/* What is to be an entry of the current table. A next hop that somebody is just writing, or has written since the copy, is
 * not believed. */
always_inline bool move_birth(const struct peek *peek, struct birth *b, const int family)
{
	const struct flow *f = move_entry(peek, family);

	if (!f)
		return false;
	b->key = peek->key;
	b->leaves = peek->leaves;
	b->flow = *f;
	b->rare = peek->rare;
	b->nat = peek->nat;
	b->moving = 1;
	if (mark_locked(peek->mark) || move_mark(peek, family) != peek->mark)
		b->flow.stamp = 0;
	return true;
}

/* What packets have told the old entry since it was copied. */
always_inline void move_state(const struct peek *from, const struct birth *to, const int family)
{
	struct flow_marks *old = table_bucket(family, from->table & 1, from->bucket);
	const struct flow *was = table_slot_within(old, family, from->slot);
	struct flow *is = table_slot_within(table_bucket(family, to->table & 1, to->bucket), family, to->slot);

	if (was && is)
		table_inherit(is, was, old, from->slot, mark_next(from->mark, FLOW_TAG_FREE));
}

/* Before it comes into force: whoever counts there goes on from it. */
always_inline void move_carried(const struct peek *from, const struct birth *to)
{
	struct carried_key key = carried_key(to->key.family, to->table, to->bucket, to->slot);

	if (from->state & FLOW_FOLDED)
		bpf_map_update_elem(&carried_v1, &key, &from->carried, BPF_ANY);
}

always_inline void move_forget(const struct peek *from, const struct birth *to)
{
	if (from->state & FLOW_FOLDED)
		carried_forget(to->key.family, to->table, to->bucket * FLOW_SLOTS + to->slot);
}

/* Both entries as copies in the current table, in force and locked. */
always_inline bool move_open(struct work *work, const struct ending *e, struct birth *forward, struct birth *answer)
{
	int result = flow_place_both(forward, answer);

	if (result == FLOW_FULL && flow_make_room_both(forward, answer, &work->evicted))
		result = flow_place_both(forward, answer);
	if (result != FLOW_CREATED)
		return false;
	move_carried(&e->entry, forward);
	move_carried(&e->pair, answer);
	return flow_commit_both(forward, answer) == FLOW_CREATED;
}

enum moved {
	MOVED_NOT,  /* there is nothing to move any more */
	MOVED_LEFT, /* until the next time */
	MOVED_DONE,
};

/* Packets find the new entries first, and these stay locked until the old ones have ended, so they always find one. What
 * a packet writes into an old entry in that moment is lost to the counters, but not to the state. */
always_inline enum moved move_both(struct work *work, const int family)
{
	struct ending *e = &work->ending;
	struct birth *forward = &work->forward, *answer = &work->answer;

	if (!move_birth(&e->entry, forward, family) || !move_birth(&e->pair, answer, family))
		return MOVED_NOT;
	if (!move_open(work, e, forward, answer))
		return MOVED_LEFT;
	bool ours = peek_free(&e->entry);
	if (ours) {
		flow_free_pair(&e->entry, &e->pair);
		move_state(&e->entry, forward, family);
		move_state(&e->pair, answer, family);
	} else { /* just being rewritten, or ended: the next time shows */
		move_forget(&e->entry, forward);
		move_forget(&e->pair, answer);
	}
	flow_release_both(forward, answer, ours);
	return ours ? MOVED_DONE : MOVED_LEFT;
}

/* The connection that was found. A function that is verified once, and not on each way to it. */
__noinline int move_connection(void)
{
	struct work *work = work_get(WORK_MOVE);

	if (!work)
		return MOVED_NOT;
	return work->ending.entry.key.family == FAMILY_IPV4 ? move_both(work, FAMILY_IPV4) :
							      move_both(work, FAMILY_IPV6);
}

always_inline void move_on(struct move *move)
{
	int moved = move_connection();

	move->moved += moved == MOVED_DONE;
	move->left += moved == MOVED_LEFT;
}

/* Is this entry what is left of a connection that stands in the current table already, or of none? (An entry whose next
 * hop is just being rewritten cannot be freed: it stays until the next time.) */
always_inline bool move_has_moved(const struct move *move, const struct ending *e)
{
	if (e->entry.table != move->table)
		return true;
	return (!e->paired || e->pair.table != move->table) && e->idle > ticks(ORPHAN_MS);
}

always_inline long move_bucket(__u32 index, struct move *move, const int family)
{
	struct flow_marks *marks = table_bucket(family, move->table, move->args->first + index);

	if (!marks)
		return 1;
	for (__u32 slot = 0; slot < FLOW_SLOTS; slot++) {
		const struct flow *f = table_slot(marks, family, slot);
		__u32 mark = READ_ONCE(marks->mark[slot]);
		if (mark >> TAG_SHIFT < FLOW_TAG_FIRST || f->state & FLOW_REPLY)
			continue;
		struct ending *e = &move->work->ending;
		flow_key(f, family, &e->entry.key);
		e->now = now();
		if (!flow_find_both(e))
			continue;
		if (move_has_moved(move, e))
			table_free(marks, slot, mark, NULL); /* `away` may stay: nothing new comes here */
		else if (!e->paired)
			move->left++; /* just being born */
		else
			move_on(move);
	}
	return 0;
}

static long move_bucket4(__u32 index, struct move *move)
{
	return move_bucket(index, move, FAMILY_IPV4);
}

static long move_bucket6(__u32 index, struct move *move)
{
	return move_bucket(index, move, FAMILY_IPV6);
}

SEC("syscall") int move(struct move_args *args)
{
	const struct flow_tables *tables = flow_tables();
	struct move move = {.args = args, .work = work_get(WORK_MOVE)};

	args->moved = args->left = 0;
	if (!move.work)
		return 0;
	move.table = !(tables->current & 1);
	if (args->family == FAMILY_IPV4)
		bpf_loop(args->buckets, move_bucket4, &move, 0);
	else
		bpf_loop(args->buckets, move_bucket6, &move, 0);
	args->moved = move.moved;
	args->left = move.left;
	return 0;
}

/* ---- release: of a connection that Linux has deleted ---- */

SEC("syscall") int release(struct release_args *args)
{
	struct work *work = work_get(WORK_RELEASE);
	struct ending *e = work ? &work->ending : NULL;

	args->released = 0;
	if (!e)
		return 0;
	e->entry.key = args->key;
	e->why = FLOW_END_LINUX;
	e->now = now();
	for (int i = 0; i < END_TRIES && !args->released; i++)
		if (flow_find_both(e) && e->entry.state & FLOW_ADOPTED)
			args->released = flow_end_both(e);
	return 0;
}

/* ---- clock ---- */

SEC("syscall") int clock(struct clock_args *args)
{
	args->jiffies = bpf_jiffies64();
	args->boot_ns = bpf_ktime_get_ns();
	return 0;
}

/* The control plane knows these by name, from BTF, which holds only what something has as its type. */
const volatile union {
	enum reason reason;
	enum flow_state flow_state;
	enum flow_end flow_end;
	enum flow_tag flow_tag;
	struct flow4_bucket flow4_bucket;
	struct flow6_bucket flow6_bucket;
	struct flow_record flow_record;
	struct adopted_record adopted_record;
	enum timeout timeout;
	enum midstream midstream;
	enum when_full when_full;
	enum service_mode service_mode;
	enum service_algorithm service_algorithm;
	enum endpoint_state endpoint_state;
	enum firewall firewall;
	enum trusted trusted;
	enum honours honours;
	enum view view;
	enum firewall_action firewall_action;
	struct firewall_event firewall_event;
} cw_types = {};

char LICENSE[] SEC("license") = "Dual BSD/GPL";
