// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The classifier by itself: for each of a number of packets' fields the rule that they meet. For tests and for the
 * benchmark. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "types.h"
#include "util.h"
#include "classify.h"

#define ASKED_MAX 65536

struct asked {
	__u32 instance;
	__u32 count; /* of `packets` */
	__u32 skip;  /* only what comes before and after a look-up */
	__u32 pad;
	__u64 ns; /* out: for all of them */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ASKED_MAX);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct fields);
} packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ASKED_MAX);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} found SEC(".maps");

always_inline long ask(__u32 index, const struct asked *asked, const bool look_up)
{
	__u32 place = index;
	struct classify *c = classify_here();
	const struct fields *packet = bpf_map_lookup_elem(&packets, &place);
	__u64 *answer = bpf_map_lookup_elem(&found, &place);

	if (!c || !packet || !answer)
		return 1;
	c->fields = *packet;
	*answer = look_up ? classify(asked->instance) | (__u64)c->told << 32 : c->fields.words[0];
	return 0;
}

static long ask_one(__u32 index, const struct asked *asked)
{
	return ask(index, asked, true);
}

static long skip_one(__u32 index, const struct asked *asked)
{
	return ask(index, asked, false);
}

SEC("syscall") int ask_all(struct asked *args)
{
	struct asked asked = *args;
	__u64 began = bpf_ktime_get_ns();

	if (asked.skip)
		bpf_loop(asked.count, skip_one, &asked, 0);
	else
		bpf_loop(asked.count, ask_one, &asked, 0);
	args->ns = bpf_ktime_get_ns() - began;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
