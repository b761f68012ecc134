// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Packets that stand ready, one after the other: each is copied into the frame of a test run.
 *
 *   replay_xdp, replay_tc   and handed on by tail call: to a data path, or to a program that does nothing, so that what
 *                           copying costs can be taken off
 *   replay_out              and sent out of a device; run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES
 *   empty_xdp, empty_tc     what comes behind when only copying is to be measured
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#define always_inline static inline __attribute__((always_inline))

#define FRAME_BYTES 64
#define FRAME_BYTES_MAX 80 /* TCP over IPv6 does not fit 64 */
#define TARGETS 2

const volatile __u32 out_ifindex = 0;

struct frame {
	__u64 words[FRAME_BYTES_MAX / 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set by the benchmark */
	__type(key, __u32);
	__type(value, struct frame);
} frames SEC(".maps");

struct replay {
	__u32 count; /* of frames that take turns */
	__u32 next;  /* whose turn it is */
	__u32 target;
	__u32 pad; /* aligns what follows */
	__u64 written;
};
_Static_assert(sizeof(struct replay) == 24, "struct replay");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct replay);
} replays SEC(".maps");

#define TARGET_TABLE(NAME) \
	struct { \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, TARGETS); \
		__type(key, __u32); \
		__type(value, __u32); \
	} NAME SEC(".maps")

TARGET_TABLE(xdp_targets);
TARGET_TABLE(tc_targets);

always_inline struct replay *replay(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&replays, &zero);
}

/* The atomic addition waits until the packet stands in memory, as one that comes from a device does: otherwise who reads it
 * would wait for our stores. */
always_inline bool write_frame(void *data, void *end, struct replay *r)
{
	__u32 turn = r->next;
	const struct frame *frame = bpf_map_lookup_elem(&frames, &turn);
	__u64 *to = data;

	r->next = turn + 1 < r->count ? turn + 1 : 0;
	if (!frame || data + FRAME_BYTES > end)
		return false;
#pragma clang loop unroll(full)
	for (int i = 0; i < FRAME_BYTES / 8; i++)
		to[i] = frame->words[i];
	if (data + FRAME_BYTES_MAX <= end) {
		to[8] = frame->words[8];
		to[9] = frame->words[9];
	}
	__sync_fetch_and_add(&r->written, 1);
	return true;
}

SEC("xdp.frags") int replay_xdp(struct xdp_md *ctx)
{
	struct replay *r = replay();

	if (r && write_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, r))
		bpf_tail_call(ctx, &xdp_targets, r->target);
	return XDP_ABORTED;
}

SEC("xdp") int replay_out(struct xdp_md *ctx)
{
	struct replay *r = replay();

	if (!r || !write_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, r))
		return XDP_ABORTED;
	return bpf_redirect(out_ifindex, 0);
}

SEC("xdp.frags") int empty_xdp(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("tc") int replay_tc(struct __sk_buff *skb)
{
	struct replay *r = replay();

	if (r && write_frame((void *)(long)skb->data, (void *)(long)skb->data_end, r))
		bpf_tail_call(skb, &tc_targets, r->target);
	return -1; /* TC_ACT_UNSPEC */
}

SEC("tc") int empty_tc(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
