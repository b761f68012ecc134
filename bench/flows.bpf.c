// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Packets of many flows, each written into the frame of a test run and handed on by tail call: to a data path, or to a
 * program that does nothing, so that what writing costs can be taken off.
 *
 *   generate_xdp, generate_tc   the next packet of the stream
 *   empty_xdp, empty_tc         what comes behind it when only writing is to be measured
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define always_inline static inline __attribute__((always_inline))
/* The verifier ties a bounds check to the register it was made on: the compiler must not compute it twice. */
#define keep_register(VARIABLE) asm volatile("" : "+r"(VARIABLE))

#define FRAME_BYTES 64
#define FRAME_BYTES_MAX 80 /* TCP over IPv6 does not fit 64 */
#define OFFSET_MASK 0x7f
#define TARGETS 4

/* A client is told from others by the last bits of its address and by its port: 2^32 of them. */
#define PORT_BITS 15
#define FIRST_PORT 0x8000

/* All flows of a stream send the same but for the client's address and port. */
struct stream {
	__u8 frame[FRAME_BYTES_MAX]; /* with zero for both; its checksums as for that */
	__u32 address_at;	     /* offset of the last four bytes of the client's address */
	__u32 port_at;
	__u32 header_check_at; /* of IPv4; 0: there is none */
	__u32 check_at;	       /* of layer 4 */
	__u32 flows;	       /* so many take turns */
	__u32 next;	       /* whose turn it is */
	__u32 listed;	       /* their numbers stand in `numbers` */
	__u32 first;	       /* if not: the first one's number, from which on they are counted */
	__u32 scattered;       /* neighbours by number have nothing else in common */
	__u32 target;
	__u64 written;
};
_Static_assert(sizeof(struct stream) == 128, "struct stream");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stream);
} streams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set by the benchmark */
	__type(key, __u32);
	__type(value, __u32);
} numbers SEC(".maps");

#define TARGET_TABLE(NAME) \
	struct { \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, TARGETS); \
		__type(key, __u32); \
		__type(value, __u32); \
	} NAME SEC(".maps")

TARGET_TABLE(xdp_targets);
TARGET_TABLE(tc_targets);

always_inline __u32 take_flow(struct stream *s)
{
	__u32 turn = s->next;

	s->next = turn + 1 < s->flows ? turn + 1 : 0;
	if (!s->listed)
		return s->first + turn;
	const __u32 *number = bpf_map_lookup_elem(&numbers, &turn);
	return number ? *number : 0;
}

/* Another number for each number (the finalizer of MurmurHash3). */
always_inline __u32 scatter(__u32 number)
{
	number ^= number >> 16;
	number *= 0x85ebca6b;
	number ^= number >> 13;
	number *= 0xc2b2ae35;
	return number ^ number >> 16;
}

always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* RFC 1624, for what was zero. */
always_inline bool add_to_checksum(void *data, void *end, __u32 offset, __u32 sum)
{
	__u16 *check = data + (offset & OFFSET_MASK);

	keep_register(check);
	if ((void *)(check + 1) > end)
		return false;
	*check = ~fold((__u16) ~*check + sum) ?: 0xffff; /* of UDP 0 means that there is none */
	return true;
}

/* The next packet, whatever stood there before. */
always_inline bool write_packet(void *data, void *end, struct stream *s)
{
	const __u64 *from = (const __u64 *)s->frame;
	__u64 *to = data;
	__u32 number = take_flow(s);

	if (data + FRAME_BYTES > end)
		return false;
#pragma clang loop unroll(full)
	for (int i = 0; i < FRAME_BYTES / 8; i++)
		to[i] = from[i];
	if (data + FRAME_BYTES_MAX <= end) {
		to[8] = from[8];
		to[9] = from[9];
	}
	if (s->scattered)
		number = scatter(number);
	__be32 host = bpf_htonl(number >> PORT_BITS), *address = data + (s->address_at & OFFSET_MASK);
	keep_register(address);
	if ((void *)(address + 1) > end)
		return false;
	*address |= host;
	__be16 port = bpf_htons(FIRST_PORT | (number & (FIRST_PORT - 1))), *at = data + (s->port_at & OFFSET_MASK);
	keep_register(at);
	if ((void *)(at + 1) > end)
		return false;
	*at = port;
	__u32 sum = (host & 0xffff) + (host >> 16);
	if (s->header_check_at && !add_to_checksum(data, end, s->header_check_at, sum))
		return false;
	return add_to_checksum(data, end, s->check_at, sum + port);
}

always_inline struct stream *stream(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&streams, &zero);
}

/* A packet that comes from a device stands in memory. The atomic addition waits until ours does: otherwise who reads
 * it would wait for our stores, and that would count as the reader's time. */
always_inline bool deliver_packet(void *data, void *end, struct stream *s)
{
	if (!write_packet(data, end, s))
		return false;
	__sync_fetch_and_add(&s->written, 1);
	return true;
}

SEC("xdp.frags") int generate_xdp(struct xdp_md *ctx)
{
	struct stream *s = stream();

	if (s && deliver_packet((void *)(long)ctx->data, (void *)(long)ctx->data_end, s))
		bpf_tail_call(ctx, &xdp_targets, s->target);
	return XDP_ABORTED;
}

SEC("xdp.frags") int empty_xdp(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("tc") int generate_tc(struct __sk_buff *skb)
{
	struct stream *s = stream();

	if (s && deliver_packet((void *)(long)skb->data, (void *)(long)skb->data_end, s))
		bpf_tail_call(skb, &tc_targets, s->target);
	return -1; /* TC_ACT_UNSPEC */
}

SEC("tc") int empty_tc(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
