/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet ends: counted under one reason and turned into what the hook understands. */
#pragma once

always_inline void count_received(const struct packet *p)
{
	__u32 zero = 0;
	struct counter *counter = bpf_map_lookup_elem(&received_v1, &zero);

	if (counter) {
		counter->packets++;
		counter->bytes += p->length;
	}
}

/* The parser has found that a frame is longer than its first buffer. Counting it only then would keep values alive
 * across the parser, which costs every packet 15-25 ns. */
always_inline void count_received_rest(__u32 bytes)
{
	__u32 zero = 0;
	struct counter *counter = bpf_map_lookup_elem(&received_v1, &zero);

	if (counter)
		counter->bytes += bytes;
}

always_inline void count(const struct packet *p, __u32 reason)
{
	struct counter *counter = bpf_map_lookup_elem(&counter_v1, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += p->length;
	}
}

#ifdef HOOK_XDP
#define ACTION_PUNT XDP_PASS
#define ACTION_DROP XDP_DROP
#else
#define ACTION_PUNT (-1) /* TC_ACT_UNSPEC, TCX_NEXT: whoever else has a program or filter here comes next */
#define ACTION_DROP TC_ACT_SHOT
#endif

/* For reasons whose verdict is PUNT, DROP or ANSWER; FORWARD ends in forward() (rewrite.h). */
always_inline int conclude(struct packet *p, int reason)
{
	count(p, reason);
	if (reason >= REASON_DROP_ETHERNET_SHORT)
		return ACTION_DROP;
	if (reason >= REASON_PUNT_NOT_IP)
		return ACTION_PUNT;
	return packet_return(p);
}

/* XDP leaves to TC what it cannot finish; it is counted there. Where there is no TC behind, it ends here. */
always_inline int hand_over(struct packet *p, int reason)
{
	if (packet_hand_over(p))
		return ACTION_PUNT;
	return conclude(p, reason);
}
