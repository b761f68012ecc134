// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ageing, inside the kernel: the daemon runs `sweep` every second, nothing is copied out. `clock` tells the
 * loader what a jiffy is and a reader what time it is. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "types.h"
#include "reasons.h"
#include "maps.h"
#include "util.h"
#include "scratch.h"
#include "flow.h"
#include "state.h"

#define ORPHAN_MS 1000 /* an entry without its pair may be just being born */

struct sweep {
	__u32 now;
	__u32 epoch;
	struct sweep_args *args;
};

always_inline __u32 ticks(__u32 ms)
{
	return (__u64)ms * cw_hz / 1000;
}

/* Jiffies since either direction sent a packet; an entry written after `now` was read is not old. */
always_inline __u32 idle(__u32 now, const struct flow *f, const struct flow *other)
{
	__s32 a = now - f->seen, b = now - other->seen;

	a = a < b ? a : b;
	return a < 0 ? 0 : a;
}

always_inline void visit(const struct tuple *t, const struct flow *f, struct sweep *sweep)
{
	const struct flow *other = flow_pair(f, t);
	__u32 index = sweep->epoch & 1;
	__u32 limit;

	if (!other) {
		if ((__s32)(sweep->now - f->created) > (__s32)ticks(ORPHAN_MS))
			flow_delete(t);
		return;
	}
	if (f->flags & FLOW_REPLY)
		return; /* its pair speaks for both */
	sweep->args->visited++;
	const struct config *config = bpf_map_lookup_elem(&config_v1, &index);
	if (!config)
		return;
	limit = ticks(config->timeout_ms[flow_timeout(t, f, other) % TIMEOUT_COUNT]);
	if (idle(sweep->now, f, other) <= limit)
		return;
	flow_delete_pair(f, t);
	sweep->args->expired++;
}

FLOW_EACH(visit, struct sweep)

SEC("syscall") int sweep(struct sweep_args *args)
{
	__u32 zero = 0;
	const struct active *active = bpf_map_lookup_elem(&active_v1, &zero);
	struct sweep sweep = {.now = now(), .epoch = active ? active->epoch : 0, .args = args};

	args->visited = args->expired = 0;
	flow_each(&sweep);
	return 0;
}

SEC("syscall") int clock(struct clock_args *args)
{
	args->jiffies = bpf_jiffies64();
	args->boot_ns = bpf_ktime_get_ns();
	return 0;
}

/* The control plane knows these by name, from BTF, which holds only what something has as its type. */
const volatile union {
	enum reason reason;
	enum flow_flags flow_flags;
	enum tcp_sent tcp_sent;
	enum timeout timeout;
	enum midstream midstream;
	enum service_mode service_mode;
	enum service_algorithm service_algorithm;
	enum endpoint_state endpoint_state;
} cw_enums = {};

char LICENSE[] SEC("license") = "Dual BSD/GPL";
