/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What this machine sends, or Linux forwards from interfaces that are not clearway's: seen at TC's egress, never touched. It
 * opens connections, so that the firewall knows what comes in as their replies. */
#pragma once

/* Most packets are of a connection that is known, and change nothing. */
always_inline bool sent_hit(struct packet *p)
{
	struct verdict verdict;
	struct segment seg;
	__u64 hash;

	if (p->fragment || p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		return false;
	struct flow *f = flow_hit(&p->tuple, &verdict, &hash);
	if (!f || !(verdict.state & FLOW_SENT_ACK))
		return false;
	__u64 was = f->carried;
	if ((was ^ (was + CARRIED_PACKET + p->length)) & CARRIED_TURNS)
		return false;
	if (p->tuple.proto == IPPROTO_TCP && tcp_read(p, &seg))
		tcp_track(&seg, f);
	f->carried = was + CARRIED_PACKET + p->length;
	f->seen = now();
	return true;
}

/* Can it be told which connection it is of? */
always_inline bool sent_tells(const struct packet *p)
{
	if (p->fragment == FRAGMENT_LATER || is_to_many(p))
		return false;
	return !is_icmp(&p->tuple) || p->icmp_echo;
}

always_inline void sent_open(struct packet *p, struct scratch *s)
{
	const struct config *config = config_of(epoch_now());
	bool answers = is_icmp(&p->tuple) && p->icmp_type != icmp_request(p->tuple.family);

	if (!config || !config->firewall || answers || p->tcp_flags & TCP_RST)
		return;
	opening_begin(p, s);
	s->opening.to_linux = true;
	s->forward.leaves = p->tuple;
	s->source.address = p->tuple.src;
	opening_for_linux(p, s, generation(p));
}

always_inline int enter_sent(struct packet *p, struct scratch *s)
{
	s->entry.key = p->tuple;
	if (flow_peek(&s->entry)) {
		if (known_state(p, s)) {
			flow_refresh(&s->entry, p->length);
			return ACTION_PUNT;
		}
		flow_end(&s->ending, &p->tuple, FLOW_END_REOPENED);
	}
	sent_open(p, s);
	return ACTION_PUNT;
}
