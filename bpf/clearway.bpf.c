// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The data path. Compiled twice, with HOOK_XDP and with HOOK_TC, into two objects that share all tables.
 *
 *   entry   parse -> scrub -> flow hit -> rewrite -> forward
 *   again   parse, for those behind
 *   known   fragment -> known flow: state, endpoint, route
 *   open    service -> route -> nat -> new flow
 *   adopt   connections of Linux', learned from its conntrack
 *   icmp    errors about translated flows, translated
 *   answer  ICMP errors and resets of our own
 *   refuse  what the firewall does not accept
 *   stray   what only Linux can carry, parsed, and what nobody can
 *   odd     and judged
 *   sent    connections that this machine opens
 *
 * A packet is handled completely or handed to Linux as it came (verdict.h). */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

/* The benchmark compiles its yardstick with another one (bench/table_hash.h). */
#ifndef FLOW_TABLE_HEADER
#define FLOW_TABLE_HEADER "table.h"
#endif

#include "types.h"
#include "reasons.h"
#include "maps.h"
#include "util.h"
#include "inforce.h"
#include "state.h"
#include FLOW_TABLE_HEADER
#include "flow.h"
#include "scratch.h"
#include "packet.h"
#include "verdict.h"
#include "parse.h"
#include "stages.h"
#include "scrub.h"
#include "generation.h"
#include "tcp.h"
#include "adopted.h"
#include "egress.h"
#include "route.h"
#include "neighbour.h"
#include "rewrite.h"
#include "service.h"
#include "nat.h"
#include "stateless.h"
#include "inbound.h"
#include "fragment.h"
#include "classify.h"
#include "firewall.h"
#include "views.h"
#include "honour.h"
#include "known.h"
#include "adopt.h"
#include "opening.h"
#include "icmp.h"
#include "answer.h"
#include "reset.h"
#include "refuse.h"
#include "stray.h"
#ifdef HOOK_TC
#include "sent.h"
#endif

#ifdef HOOK_XDP
#define PROGRAM(NAME) SEC("xdp.frags") int cw_xdp##NAME(context *ctx)
#else
#define PROGRAM(NAME) SEC("tc") int cw_tc##NAME(context *ctx)
#endif

/* What the hit path has found. */
struct hit {
	struct flow *flow;
	struct verdict verdict;
	struct egress egress;
	__u64 hash;
	__u64 carried; /* what the packet adds to what the flow has carried */
};

/* Does the packet hit a flow that can carry it as it is? */
always_inline bool look_up(struct packet *p, const struct net_device *device, __u32 stamp, struct hit *hit)
{
	struct verdict *v = &hit->verdict;

	if (p->fragment || p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) || (is_icmp(&p->tuple) && !p->icmp_echo))
		return false;
	hit->flow = flow_hit(&p->tuple, v, &hit->hash);
	if (!hit->flow || v->stamp != stamp || !(v->state & FLOW_SENT_ACK) ||
	    !egress_read(v->egress, v->stamp, &hit->egress))
		return false;
	if (v->state & FLOW_ADOPTED && (adopt_asks(p, device, hit->flow) || !mangle_fits(p, v->state)))
		return false;
	struct packet_sizes sizes = packet_sizes(p);
	hit->carried = CARRIED_PACKET + (v->state & FLOW_ADOPTED ? sizes.whole : p->length);
	__u64 was = hit->flow->carried;
	if ((was ^ (was + hit->carried)) & CARRIED_TURNS)
		return false;
	return p->ttl > 1 && sizes.segment <= v->mtu;
}

/* The hit path: everything here is paid by every packet. */
always_inline int enter(struct packet *p)
{
	struct net_device *device = packet_device_seen(p);
	__u32 stamp = generation_by(p, device);
	struct hit hit; /* what is not found is not read either */

	hit.flow = NULL;
	hit.hash = 0;
	hit.verdict.state = 0;
	if (!look_up(p, device, stamp, &hit)) {
		bool ours = hit.flow && !(hit.verdict.state & FLOW_ADOPTED);
		int refused = ours ? CONTINUE : adopt_refused(p, device, hit.hash, stamp, hit.flow);
		if (refused != CONTINUE)
			return conclude(p, refused);
		bpf_tail_call(p->ctx, &stages, STAGE_AGAIN);
		return conclude(p, REASON_DROP_STAGE_MISSING);
	}
	if (must_hand_over(&hit.egress))
		return hand_over(p, REASON_DROP_NO_EGRESS);
	struct segment seg;
	if (p->tuple.proto == IPPROTO_TCP && !(hit.verdict.state & FLOW_ADOPTED) && tcp_read(p, &seg))
		tcp_track(&seg, hit.flow);
	hit.flow->carried += hit.carried;
	hit.flow->seen = now();
	return forward(p, &hit.verdict, &hit.egress, REASON_FORWARD_FLOW);
}

/* reason: what the parser says. */
always_inline int enter_with(struct packet *p, int reason)
{
	if (reason != CONTINUE)
		return stray_or_end(p, reason);
	return scrub_drops(p) ? conclude(p, REASON_DROP_BLOCKLIST) : enter(p);
}

/* What parse() would do, and the hit path, for packets of one kind: whatever depends on it is decided by the compiler. */
always_inline int enter_kind(struct packet *p, const __u8 family, const __u8 proto)
{
	p->l3_offset = sizeof(struct ethhdr);
	int reason = family == FAMILY_IPV4 ? parse_ipv4(p, PARSE_ENTRY) : parse_ipv6_header(p, PARSE_ENTRY);

	if (reason != CONTINUE)
		return stray_or_end(p, reason);
	p->tuple.proto = proto;
	p->fragment = FRAGMENT_NONE;
	return enter_with(p, proto == IPPROTO_TCP ? parse_tcp(p, PARSE_ENTRY) : parse_udp(p, PARSE_ENTRY));
}

/* The kinds that nearly all packets are of have programs of their own, so to speak, which takes a fifth off the hit path. */
always_inline int enter_by_kind(struct packet *p)
{
	if (parse_is_plain(p)) {
		const struct ethhdr *eth = p->data;
		const struct iphdr *ip = (void *)(eth + 1);
		const struct ipv6hdr *ip6 = (void *)(eth + 1);
		if (eth->h_proto == bpf_htons(ETH_P_IP) && !(ip->frag_off & (IP_MF | IP_OFFSET))) {
			if (ip->protocol == IPPROTO_TCP)
				return enter_kind(p, FAMILY_IPV4, IPPROTO_TCP);
			if (ip->protocol == IPPROTO_UDP)
				return enter_kind(p, FAMILY_IPV4, IPPROTO_UDP);
		}
		if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) <= p->end) {
			if (ip6->nexthdr == IPPROTO_TCP)
				return enter_kind(p, FAMILY_IPV6, IPPROTO_TCP);
			if (ip6->nexthdr == IPPROTO_UDP)
				return enter_kind(p, FAMILY_IPV6, IPPROTO_UDP);
		}
	}
	return enter_with(p, parse(p, PARSE_ENTRY));
}

always_inline int enter_known(struct packet *p, struct scratch *s)
{
	__u32 stamp = generation(p);
	int verdict;

	if (p->fragment == FRAGMENT_FIRST)
		fragment_store(p);
	if (p->fragment == FRAGMENT_LATER && !fragment_load(p))
		return conclude(p, fragment_claimed(p, s) ? REASON_DROP_FRAGMENT_UNKNOWN : REASON_PUNT_FRAGMENT);
	s->entry.key = p->tuple;
	s->adopted = false;
	if (flow_peek(&s->entry) && known(p, stamp, s, &verdict) != CONTINUE)
		return verdict;
	if (p->fragment == FRAGMENT_LATER) /* the first one has gone to Linux */
		return conclude(p, REASON_PUNT_FRAGMENT);
	return stage(p, STAGE_OPEN);
}

PROGRAM()
{
	struct packet p = {.ctx = ctx};

	if (!packet_open(&p))
		return conclude(&p, REASON_DROP_ETHERNET_SHORT);
	count_received(&p);
#ifdef HOOK_XDP
	if (is_listened(ctx->ingress_ifindex)) {
		if (packet_hand_over(&p))
			return ACTION_PUNT;
		packet_reload(&p);
		keep_register(p.data); /* as pointers, not as the numbers that they are loaded from */
		keep_register(p.end);
	}
#endif
	return enter_by_kind(&p);
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
	return enter_with(&p, parse(&p, PARSE_ENTRY));
}
#endif

/* Of no flow, and nothing claims it: no other stage has to be asked. Most often it opens a connection of Linux'. */
always_inline bool is_nobodys(const struct packet *p)
{
	struct scratch *s = scratch_get();

	if (!s || adopt_may_be_claimed())
		return false;
	s->entry.key = p->tuple;
	return !flow_peek(&s->entry);
}

/* Parsing twice costs those who need a thought 15 ns; keeping what was read cost every packet 3. */
PROGRAM(_again)
{
	struct packet p = {.ctx = ctx};

	if (!packet_open(&p))
		return conclude(&p, REASON_DROP_ETHERNET_SHORT);
	int reason = parse(&p, PARSE_AGAIN);
	if (reason != CONTINUE)
		return conclude(&p, reason);
	if (adopt_at_once(&p))
		return stage(&p, STAGE_ADOPT);
	if (p.fragment)
		return stage(&p, STAGE_KNOWN);
	if (is_icmp(&p.tuple) && !p.icmp_echo)
		return stage(&p, STAGE_ICMP);
	return is_nobodys(&p) ? conclude(&p, REASON_PUNT_NOT_OURS) : stage(&p, STAGE_KNOWN);
}

/* Over the MTU, and the sender allows fragments: translated by us, fragmented by Linux on its way out. Its source may be an
 * address of the node itself, which Linux takes from the loopback device alone (datapath/loopback.py). */
always_inline int leave_to_fragment(struct packet *p, struct scratch *s, bool stateless)
{
#ifdef HOOK_XDP
	return hand_over(p, REASON_DROP_NO_EGRESS);
#else
	const __u8 nobody[ETH_ALEN] = {};

	if (!stateless)
		flow_refresh(&s->entry, p->length);
	if (!rewrite(p, &s->entry.verdict, 0) || !packet_link(p, nobody, nobody, 0, 0))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	count(p, REASON_PUNT_TO_FRAGMENT);
	return packet_loop_back();
#endif
}

/* The other programs send here what they cannot forward; why, shows again. */
always_inline int enter_answer(struct packet *p, struct scratch *s)
{
	bool stateless = s->stateless;

	s->stateless = false; /* the next packet's until it says so itself */
	if (p->ttl <= 1)
		return answer_ttl(p);
	if (p->fragment == FRAGMENT_LATER && !fragment_load(p))
		return conclude(p, REASON_DROP_FRAGMENT_UNKNOWN);
	s->entry.key = p->tuple;
	if (!stateless && !flow_peek(&s->entry))
		return answer_reset(p, REASON_ANSWER_RESET, REASON_DROP_MIDSTREAM);
	if (!p->dont_fragment)
		return leave_to_fragment(p, s, stateless);
	if (!stateless)
		flow_refresh(&s->entry, p->length);
	return answer_too_big(p, s->entry.verdict.mtu);
}

/* A program behind the entry. Its packet stays in one place on the stack: taken apart into registers, they would need more
 * of it than there is. */
#define STAGE(NAME, WORK) \
	PROGRAM(NAME) \
	{ \
		struct packet packet = {.ctx = ctx}, *p = &packet; \
		struct scratch *s = scratch_get(); \
		keep_register(p); \
		if (!s || !packet_restore(p, s)) \
			return conclude(p, REASON_DROP_STAGE_MISSING); \
		return WORK(p, s); \
	}

STAGE(_known, enter_known)
STAGE(_open, enter_open)
STAGE(_adopt, enter_adopt)
STAGE(_icmp, enter_icmp)
STAGE(_answer, enter_answer)
STAGE(_refuse, enter_refuse)

PROGRAM(_stray)
{
	struct packet p = {.ctx = ctx};

	if (!packet_open(&p))
		return conclude(&p, REASON_DROP_ETHERNET_SHORT);
	int reason = parse(&p, PARSE_ALL);
	if (p.tuple.family && scrub_drops(&p))
		return conclude(&p, REASON_DROP_BLOCKLIST);
	if (reason == CONTINUE)
		return stage(&p, STAGE_ODD);
	return conclude(&p, stray_unread(&p, reason));
}

STAGE(_odd, enter_odd)

#ifdef HOOK_TC
/* At egress. */
SEC("tc") int cw_tc_out(context *ctx)
{
	struct packet p = {.ctx = ctx};

	/* what came in by an interface of clearway's was judged there */
	if (is_port(ctx->ingress_ifindex) || !packet_open(&p) || parse(&p, PARSE_ALL) != CONTINUE || !sent_tells(&p))
		return ACTION_PUNT;
	if (!sent_hit(&p)) {
		struct scratch *s = scratch_get();
		if (s) {
			s->parsed = *packet_parsed(&p);
			bpf_tail_call(ctx, &stages, STAGE_SENT);
		}
	}
	return ACTION_PUNT;
}

SEC("tc") int cw_tc_sent(context *ctx)
{
	struct packet packet = {.ctx = ctx}, *p = &packet;
	struct scratch *s = scratch_get();

	keep_register(p);
	if (!s || !packet_restore(p, s))
		return ACTION_PUNT;
	return enter_sent(p, s);
}
#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";
