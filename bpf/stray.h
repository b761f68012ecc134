/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the parser leaves to Linux at once: IP options, other protocols than TCP, UDP and ICMP, multicast, link-local
 * addresses, more tags than it reads. With a firewall it is judged before: no packet may go around it by being odd. And by what is
 * odd, Linux learns of connections that it has lent to the fast path. */
#pragma once

always_inline bool stray_is(int reason)
{
	return reason == REASON_PUNT_MULTICAST || reason == REASON_PUNT_IP_OPTIONS || reason == REASON_PUNT_PROTOCOL ||
	       reason == REASON_PUNT_ICMP || reason == REASON_PUNT_VLAN_UNKNOWN;
}

/* Above IP, where Linux does not look to forward a packet. */
always_inline bool stray_is_malformed(int reason)
{
	return reason == REASON_DROP_EXTENSION_HEADER || reason == REASON_DROP_L4_SHORT ||
	       reason == REASON_DROP_L4_HEADER;
}

always_inline bool stray_is_judged(void)
{
	const struct config *config = config_of(epoch_now());

	return config && config->firewall;
}

/* Is there more to do about it than to count it? */
always_inline bool stray_matters(int reason)
{
	if (stray_is_malformed(reason) || (cw_adoption && reason == REASON_PUNT_IP_OPTIONS))
		return true;
	return stray_is(reason) && (scrub_is_on() || stray_is_judged());
}

/* How the packet ends that the parser has left. */
always_inline int stray_or_end(struct packet *p, int reason)
{
	struct scratch *s = scratch_get();

	if (!s || !stray_matters(reason))
		return conclude(p, reason);
	s->stray = reason;
	bpf_tail_call(p->ctx, &stages, STAGE_STRAY);
	return conclude(p, REASON_DROP_STAGE_MISSING);
}

/* Linux will learn something of the packet's connection: it is asked again before anything else of it is carried. */
never_inline void stray_unsettles(struct scratch *s, const struct tuple *t, int why)
{
	s->entry.key = *t;
	if (flow_peek(&s->entry) && s->entry.verdict.state & FLOW_ADOPTED)
		flow_end(&s->ending, &s->entry.key, why);
}

/* Nobody's but Linux': flags behind IP options count all the same. */
always_inline int stray_linux(struct packet *p, struct scratch *s)
{
	if (p->tuple.proto == IPPROTO_TCP && p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		stray_unsettles(s, &p->tuple, p->tcp_flags & TCP_RST ? FLOW_END_RESET : FLOW_END_LINUX);
	return conclude(p, s->stray);
}

/* The flags of a segment whose header goes on in the next fragment are Linux' alone to see. */
always_inline void stray_cut_short(struct packet *p, struct scratch *s)
{
	__be16 ports[2];

	if (p->fragment != FRAGMENT_FIRST || p->tuple.proto != IPPROTO_TCP ||
	    packet_load(p, p->l4_offset, ports, sizeof(ports)))
		return;
	p->tuple.sport = ports[0];
	p->tuple.dport = ports[1];
	stray_unsettles(s, &p->tuple, FLOW_END_LINUX);
}

/* What becomes of a packet whose header above IP is cut short or impossible: Linux, which does not look there to forward it, has
 * it unless something of ours claims it. Nothing follows it by the ports of another datagram. */
always_inline int stray_malformed(struct packet *p, int reason)
{
	struct scratch *s = scratch_get();

	if (s && stray_is(s->stray) && !cw_adoption && !stray_is_judged())
		return s->stray;
	fragment_forget(p);
	if (!s)
		return reason;
	stray_cut_short(p, s);
	if (stray_is(s->stray) && !stray_is_judged())
		return s->stray;
	return fragment_claimed(p, s) ? reason : REASON_PUNT_MALFORMED;
}

/* How a packet ends that even the parser for all cannot read. Without a firewall it was looked at for its source alone, and is
 * what it was. */
always_inline int stray_unread(struct packet *p, int reason)
{
	const struct scratch *s = scratch_get();

	if (stray_is_malformed(reason))
		return stray_malformed(p, reason);
	return s && stray_is(s->stray) && !stray_is_judged() ? s->stray : reason;
}

/* What is shorter than an ICMP error has to quote gets none. */
always_inline int stray_refuse(struct packet *p)
{
	void *l4 = p->data + (p->l4_offset & L4_OFFSET_MAX);

	if (p->fragment == FRAGMENT_LATER || l4 + sizeof(struct udphdr) <= p->end)
		return stage(p, STAGE_REFUSE);
	fragment_forget(p);
	return conclude(p, REASON_DROP_FIREWALL);
}

/* Can it be told which connection it is of? What ICMP says besides echoes has the tuple of one with identifier 0. */
always_inline bool stray_tells(const struct packet *p)
{
	return !is_icmp(&p->tuple) || p->icmp_echo || p->tuple.sport || p->tuple.dport;
}

/* Of a connection that is known: it goes on for as long as that may. */
always_inline int stray_known(struct packet *p, const struct config *config, __u32 stamp, struct scratch *s)
{
	struct verdict *v = &s->entry.verdict;

	s->forward.leaves = s->entry.leaves;
	if (v->stamp != stamp) {
		route_lookup(p, s);
		if (!known_judged(&s->entry, &s->ending.pair, stamp) && !known_allowed(p, config, s)) {
			known_refused(s);
			return stray_refuse(p);
		}
		if (v->state & FLOW_LINUX) {
			v->stamp = stamp;
			flow_resolve(&s->entry);
		}
	}
	flow_refresh(&s->entry, p->length);
	return conclude(p, s->stray);
}

/* A connection that Linux carries from now on; without a place in the table it does all the same. */
always_inline void opening_for_linux(struct packet *p, struct scratch *s, __u32 stamp)
{
	opening_to_linux(s, stamp);
	opening_entries(p, s);
	s->forward.flow.carried = CARRIED_PACKET + p->length;
	s->forward.key = p->tuple;
	if (s->opening.judged)
		firewall_count(s);
	flow_open_plain(&s->forward, &s->answer, &s->ending);
}

always_inline int stray_open(struct packet *p, const struct config *config, __u32 stamp, struct scratch *s)
{
	int reason = REASON_PUNT_LOCAL;

	opening_begin(p, s);
	s->forward.leaves = p->tuple;
	if (is_to_many(p) || opening_from_nobody(&p->tuple)) {
		s->route.result = BPF_FIB_LKUP_RET_NOT_FWDED;
		reason = REASON_PUNT_MULTICAST;
	} else {
		route_lookup(p, s);
	}
	reason = opening_judge(p, config, s, reason);
	if (reason == REFUSED)
		return stray_refuse(p);
	if (reason == REASON_DROP_MIDSTREAM || reason == REASON_ANSWER_RESET) { /* a reset is made from plain headers */
		fragment_forget(p);
		return conclude(p, REASON_DROP_MIDSTREAM);
	}
	if (reason == CONTINUE)
		opening_for_linux(p, s, stamp);
	return conclude(p, s->stray);
}

always_inline int enter_odd(struct packet *p, struct scratch *s)
{
	const struct config *config = config_of(epoch_now());
	__u32 stamp = generation(p);

	if (!config || !config->firewall)
		return stray_linux(p, s);
	if (p->fragment == FRAGMENT_FIRST)
		fragment_store(p);
	if (p->fragment == FRAGMENT_LATER && !fragment_load(p))
		return conclude(p, REASON_DROP_FRAGMENT_UNKNOWN);
	s->entry.key = p->tuple;
	if (stray_tells(p) && flow_peek(&s->entry))
		return stray_known(p, config, stamp, s);
	return stray_open(p, config, stamp, s);
}
