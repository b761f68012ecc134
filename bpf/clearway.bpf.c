// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The data path. Compiled twice, with HOOK_XDP and with HOOK_TC, into two objects that share all tables.
 *
 *   entry   parse -> flow hit -> rewrite -> forward
 *   first   parse -> fragment -> known flow: state, endpoint, route | service -> route -> nat -> new flow
 *   icmp    errors about translated flows, translated
 *   answer  ICMP errors and resets of our own
 *
 * A packet is handled completely or handed to Linux as it came (verdict.h). */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "types.h"
#include "reasons.h"
#include "maps.h"
#include "util.h"
#include "scratch.h"
#include "packet.h"
#include "verdict.h"
#include "parse.h"
#include "stages.h"
#include "generation.h"
#include "flow.h"
#include "state.h"
#include "tcp.h"
#include "route.h"
#include "rewrite.h"
#include "service.h"
#include "nat.h"
#include "inbound.h"
#include "fragment.h"
#include "known.h"
#include "opening.h"
#include "icmp.h"
#include "answer.h"
#include "reset.h"

#ifdef HOOK_XDP
#define PROGRAM(NAME) SEC("xdp.frags") int cw_xdp##NAME(context *ctx)
#else
#define PROGRAM(NAME) SEC("tc") int cw_tc##NAME(context *ctx)
#endif

/* Does the packet hit a flow that can carry it as it is? STAGE_COUNT: yes, *hit; otherwise who is to think. */
always_inline enum stage look_up(struct packet *p, struct flow **hit)
{
	if (p->fragment || p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		return STAGE_FIRST;
	if (is_icmp(&p->tuple) && !p->icmp_echo)
		return STAGE_ICMP;
	struct flow *f = flow_lookup(&p->tuple);
	if (!f || f->stamp != generation(p))
		return STAGE_FIRST;
	if (p->ttl <= 1 || packet_segment(p) > f->mtu)
		return STAGE_ANSWER;
	*hit = f;
	return STAGE_COUNT;
}

/* The hit path: everything here is paid by every packet. */
always_inline int enter(struct packet *p)
{
	struct flow *f = NULL;
	enum stage next = look_up(p, &f);

	if (next != STAGE_COUNT || !f)
		return stage(p, next);
	if (must_hand_over(f))
		return hand_over(p, REASON_DROP_NO_EGRESS);
	if (p->tuple.proto == IPPROTO_TCP)
		tcp_track(p, f);
	flow_refresh(f, p->length);
	return forward(p, f, REASON_FORWARD_FLOW);
}

always_inline int enter_first(struct packet *p, struct scratch *s)
{
	__u32 stamp = generation(p);
	int verdict;

	if (p->fragment == FRAGMENT_FIRST)
		fragment_store(p);
	if (p->fragment == FRAGMENT_LATER && !fragment_load(p))
		return conclude(p, fragment_unknown(p, s));
	struct flow *f = flow_lookup(&p->tuple);
	if (f && known(p, f, stamp, s, &verdict) != CONTINUE)
		return verdict;
	if (p->fragment == FRAGMENT_LATER)
		return conclude(p, REASON_PUNT_FRAGMENT); /* as its first one was */
	return open_flow(p, stamp, s);
}

PROGRAM()
{
	struct packet p = {.ctx = ctx};

	if (!packet_open(&p))
		return conclude(&p, REASON_DROP_ETHERNET_SHORT);
	count_received(&p);
	int reason = parse(&p);
	if (reason != CONTINUE)
		return conclude(&p, reason);
	return enter(&p);
}

#ifdef HOOK_TC
/* Behind an XDP program on the same interface: only what that one has handed over, and counted. */
SEC("tc") int cw_tc_behind(context *ctx)
{
	struct packet p = {.ctx = ctx};

	if (!packet_handed_over(&p))
		return ACTION_PUNT;
	if (!packet_open(&p))
		return conclude(&p, REASON_DROP_ETHERNET_SHORT);
	int reason = parse(&p);
	if (reason != CONTINUE)
		return conclude(&p, reason);
	return enter(&p);
}
#endif

/* Over the MTU, and the sender allows fragments: translated by us, fragmented by Linux on its way out. */
always_inline int leave_to_fragment(struct packet *p, const struct flow *f)
{
	if (!rewrite(p, f, 0))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	return conclude(p, REASON_PUNT_TO_FRAGMENT);
}

/* The other programs send here what they cannot forward; why, shows again. */
always_inline int enter_answer(struct packet *p, struct scratch *s)
{
	if (p->ttl <= 1)
		return answer_ttl(p);
	if (p->fragment == FRAGMENT_LATER && !fragment_load(p))
		return conclude(p, REASON_DROP_FRAGMENT_UNKNOWN);
	struct flow *f = flow_lookup(&p->tuple);
	if (!f)
		return answer_reset(p);
	flow_refresh(f, p->length);
	if (p->dont_fragment)
		return answer_too_big(p, f->mtu);
	return leave_to_fragment(p, f);
}

/* A program behind the entry. */
#define STAGE(NAME, WORK) \
	PROGRAM(NAME) \
	{ \
		struct packet p = {.ctx = ctx}; \
		struct scratch *s = scratch_get(); \
		if (!s || !packet_restore(&p, s)) \
			return conclude(&p, REASON_DROP_STAGE_MISSING); \
		return WORK(&p, s); \
	}

STAGE(_first, enter_first)
STAGE(_icmp, enter_icmp)
STAGE(_answer, enter_answer)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
