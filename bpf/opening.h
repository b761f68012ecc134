/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a flow: service -> route -> source NAT -> both entries -> forward. Whatever no service
 * and no rule claims goes to Linux as it came. */
#pragma once

#define ANY_PORT_MIN 1
#define ANY_PORT_MAX 65535

/* About a packet that no flow is known of. */
always_inline void opening_begin(const struct packet *p, struct scratch *s)
{
	__builtin_memset(&s->opening, 0, sizeof(s->opening));
	s->opening.midstream = p->tuple.proto == IPPROTO_TCP && !tcp_is_open(p->tcp_flags);
}

/* A TCP segment without SYN and without flow: pick up, or not. Only asked for traffic that is ours. */
always_inline int opening_midstream(const struct packet *p, const struct config *config, const struct scratch *s)
{
	if (!s->opening.midstream)
		return CONTINUE;
	if (p->tcp_flags & (TCP_RST | TCP_SYN) || config->midstream == MIDSTREAM_DROP)
		return REASON_DROP_MIDSTREAM;
	return config->midstream == MIDSTREAM_RESET ? REASON_ANSWER_RESET : CONTINUE;
}

always_inline int opening_service(struct packet *p, const struct config *config, struct scratch *s)
{
	struct opening *o = &s->opening;
	__u32 id; /* on the stack: as a key, kernel 6.1 takes no memory of a map */

	s->forward.leaves = p->tuple;
	if (!config->services || is_icmp(&p->tuple))
		return CONTINUE;
	const struct service *service = service_lookup(config->epoch, &p->tuple);
	if (!service)
		return CONTINUE;
	o->service = true;
	o->full_nat = service->mode == MODE_FULL_NAT;
	o->stateless = service->stateless;
	o->honours = !service->bypass;
	s->source.port_min = service->port_min;
	s->source.port_max = service->port_max;
	if (p->ttl <= 1)
		return REASON_ANSWER_TTL_EXCEEDED;
	int reason = opening_midstream(p, config, s);
	if (reason != CONTINUE && !(reason == REASON_ANSWER_RESET && config->firewall)) /* it is judged first */
		return reason;
	const struct endpoint *endpoint = service_endpoint(service, &p->tuple, &id);
	if (!endpoint)
		return REASON_DROP_NO_ENDPOINT;
	o->endpoint = id;
	s->forward.leaves.dst = endpoint->address;
	s->forward.leaves.dport = endpoint->port;
	return CONTINUE;
}

/* What a stateless service's endpoint sends, and no flow and no Linux knows: it leaves as from the service. */
always_inline void opening_answers(struct packet *p, const struct config *config, struct scratch *s)
{
	struct opening *o = &s->opening;

	if (o->service || !config->origins || is_icmp(&p->tuple))
		return;
	const struct origin *origin = stateless_origin(config, &p->tuple);
	if (!origin || !stateless_recently(config) || inbound_known(p, config))
		return;
	s->forward.leaves.src = origin->address;
	s->forward.leaves.sport = origin->port;
	o->answers = true;
	o->honours = !origin->bypass;
}

always_inline int opening_route(struct packet *p, struct scratch *s)
{
	route_lookup(p, s);
	if (s->opening.service || s->opening.answers)
		return route_reason(&s->route);
	return route_found(&s->route) ? CONTINUE : REASON_PUNT_LOCAL;
}

/* The source becomes an address of the machine itself. false: there is none. */
always_inline bool opening_device_address(struct packet *p, struct scratch *s)
{
	s->source.host = true;
	return nat_device_address(&s->route.device, p->tuple.family, &s->source.address);
}

always_inline int opening_nat(struct packet *p, const struct nat *nat, struct scratch *s)
{
	struct source *source = &s->source;

	s->opening.nat = true;
	s->opening.nat_id = nat->id;
	if (!s->opening.service)
		s->opening.honours = !nat->bypass;
	source->port_min = nat->port_min;
	source->port_max = nat->port_max;
	if (!nat->addresses)
		return opening_device_address(p, s) ? CONTINUE : REASON_DROP_NO_ADDRESS;
	source->host = false;
	nat_pool_address(nat, &p->tuple, &source->address);
	return CONTINUE;
}

always_inline int opening_source(struct packet *p, const struct config *config, struct scratch *s)
{
	struct source *source = &s->source;

	if (s->opening.full_nat)
		return opening_device_address(p, s) ? CONTINUE : REASON_DROP_NO_ADDRESS;
	const struct nat *nat = config->nats ? nat_lookup(config->epoch, s->route.fib.ifindex, &p->tuple) : NULL;
	if (nat)
		return opening_nat(p, nat, s);
	source->address = p->tuple.src;
	source->port_min = ANY_PORT_MIN;
	source->port_max = ANY_PORT_MAX;
	source->host = false;
	return s->opening.service ? CONTINUE : REASON_PUNT_NOT_OURS;
}

/* What a NAT rule claims but cannot be the first packet of a flow. Linux answers an expired TTL: nothing is
 * translated yet. */
always_inline int opening_nat_only(struct packet *p, const struct config *config, const struct scratch *s)
{
	if (p->ttl <= 1)
		return REASON_PUNT_TTL;
	if (is_icmp(&p->tuple) && p->icmp_type != icmp_request(p->tuple.family))
		return REASON_PUNT_ICMP; /* an echo reply nobody asked for */
	if (inbound_answer(p, config))
		return REASON_PUNT_NOT_OURS;
	return opening_midstream(p, config, s);
}

/* What the packet says of its direction: FLOW_SENT_*, and the window scale that it offers. */
always_inline __u32 opening_sent(struct packet *p, struct scratch *s)
{
	struct segment *seg = &s->segment;

	if (p->tuple.proto != IPPROTO_TCP || !tcp_read(p, seg))
		return FLOW_SENT_ACK;
	if (s->opening.midstream) {
		tcp_track(seg, &s->forward.flow);
		return (seg->flags & TCP_ACK ? FLOW_SENT_ACK : 0) | (seg->flags & TCP_FIN ? FLOW_SENT_FIN : 0);
	}
	seg->scale = tcp_scale(p, &s->options);
	tcp_opened(seg, &s->forward.flow);
	return FLOW_SENT_SYN | seg->scale;
}

never_inline void opening_entries(struct packet *p, struct scratch *s)
{
	const struct opening *o = &s->opening;
	struct flow *forward = &s->forward.flow, *answer = &s->answer.flow;
	bool source_nat = !addr_equal(&s->source.address, &p->tuple.src);
	__u32 both = p->tuple.proto;

	__builtin_memset(forward, 0, sizeof(*forward));
	__builtin_memset(answer, 0, sizeof(*answer));
	forward->seen = answer->seen = s->answer.rare = now();
	s->forward.rare = o->service ? o->endpoint : 0;
	s->forward.nat = o->nat_id & 0xff;
	s->answer.nat = o->nat_id >> 8;
	s->forward.moving = s->answer.moving = 0;
	both |= o->service ? FLOW_HAS_SERVICE : 0;
	both |= o->full_nat ? FLOW_FULL_NAT : 0;
	both |= o->nat ? FLOW_HAS_NAT : 0;
	both |= o->to_linux ? FLOW_LINUX : 0;
	both |= o->honours ? FLOW_HONOURS : 0;
	both |= o->midstream ? FLOW_PICKED_UP | TCP_SCALE_MAX << FLOW_SCALE_SHIFT : 0;
	__u32 sent = opening_sent(p, s), heard = (sent & FLOW_SENT) << (FLOW_HEARD_SHIFT - FLOW_SENT_SHIFT);
	bool dest_nat = o->service;
	forward->state = both | sent | (source_nat ? FLOW_SOURCE_NAT : 0) | (dest_nat ? FLOW_DEST_NAT : 0);
	answer->state = both | FLOW_REPLY | heard | (source_nat ? FLOW_DEST_NAT : 0) | (dest_nat ? FLOW_SOURCE_NAT : 0);
	flow_hop(&s->entry.verdict, forward);
}

#define SEND_ANSWER (-2) /* no hook's verdict */

/* A function of its own for the sake of the stack, so it cannot call the next program itself. */
never_inline int opening_forward(struct packet *p, struct scratch *s, int reason)
{
	struct verdict *v = &s->entry.verdict;
	const struct tuple *leaves = &s->forward.leaves;

	v->src = leaves->src;
	v->dst = leaves->dst;
	v->sport = leaves->sport;
	v->dport = leaves->dport;
	v->addr_delta = addr_delta(&p->tuple, leaves);
	v->port_delta = delta16(p->tuple.sport, v->sport) + delta16(p->tuple.dport, v->dport);
	if (must_hand_over(&s->egress))
		return hand_over(p, REASON_DROP_NO_EGRESS);
	if (packet_segment(p) > v->mtu)
		return SEND_ANSWER;
	if (s->route.result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return forward_neighbour(p, v, &s->route);
	return forward(p, v, &s->egress, reason);
}

/* stateless: without an entry. What is too big for the way is answered or fragmented as of a flow (enter_answer). */
always_inline int opening_send(struct packet *p, struct scratch *s, int reason, bool stateless)
{
	int verdict = opening_forward(p, s, reason);

	if (verdict != SEND_ANSWER)
		return verdict;
	s->stateless = stateless;
	return stage(p, STAGE_ANSWER);
}

/* Nobody sends from there: Linux drops it, or says something in its log (net/ipv4/route.c, ip_route_input_slow;
 * net/ipv6/ip6_input.c, ip6_rcv_core). */
always_inline bool opening_from_nobody(const struct tuple *t)
{
	if (t->family == FAMILY_IPV4) {
		__u32 source = bpf_ntohl(t->src.v4), top = source >> 24;
		return top == 0 || top == 127 || (top >= 224 && top < 240) || source == 0xffffffff;
	}
	__u8 first = t->src.bytes[0], second = t->src.bytes[1];
	if (first == 0xff || (first == 0xfe && (second & 0xc0) == 0x80))
		return true;
	return !(t->src.words[0] | t->src.words[1] | t->src.words[2]) && bpf_ntohl(t->src.words[3]) <= 1;
}

/* All stages that decide, none that acts; for the stack as well. CONTINUE: the flow may be opened. */
never_inline int opening_decide(struct packet *p, const struct config *config, struct scratch *s)
{
	const struct opening *o = &s->opening;
	int reason;

	if (opening_from_nobody(&p->tuple)) {
		s->route.result = BPF_FIB_LKUP_RET_NOT_FWDED;
		return REASON_PUNT_MULTICAST;
	}
	if ((reason = opening_service(p, config, s)) != CONTINUE)
		return reason;
	opening_answers(p, config, s);
	if (o->answers && p->ttl <= 1)
		return REASON_PUNT_TTL;
	if ((reason = opening_route(p, s)) != CONTINUE || o->answers)
		return reason;
	if ((reason = opening_source(p, config, s)) != CONTINUE)
		return reason;
	return o->service ? opening_midstream(p, config, s) : opening_nat_only(p, config, s);
}

#define REFUSED (-3) /* by the firewall, neither a reason nor CONTINUE */

/* Does Linux' conntrack know the packet? A SYN opens. */
always_inline enum inbound_direction opening_of_linux(struct packet *p)
{
	bool tcp = p->tuple.proto == IPPROTO_TCP;

	if (!cw_conntrack || (!tcp && p->tuple.proto != IPPROTO_UDP) || (tcp && tcp_is_open(p->tcp_flags)))
		return INBOUND_UNKNOWN;
	return inbound_in_conntrack(p->ctx, &p->tuple);
}

/* The tuple after translation, but for a source port that is not chosen yet. */
always_inline const struct tuple *opening_leaves(struct scratch *s)
{
	s->answer.leaves = s->forward.leaves;
	if (s->opening.nat || s->opening.full_nat)
		s->answer.leaves.src = s->source.address;
	return &s->answer.leaves;
}

/* Accepted, though no service and no rule of NAT has claimed it: a connection all the same, carried by us if it is to be
 * forwarded and comes from where it should, and by Linux otherwise. What tells too little of a connection is Linux' alone, and
 * what an address sends to itself: its replies would be the same. */
always_inline int opening_accepted(struct packet *p, const struct config *config, struct scratch *s, int reason)
{
	struct opening *o = &s->opening;
	bool known = !is_icmp(&p->tuple) || p->icmp_type == icmp_request(p->tuple.family);

	if (!known || reason == REASON_PUNT_MULTICAST || addr_equal(&p->tuple.src, &p->tuple.dst))
		return reason;
	s->source.address = p->tuple.src;
	o->plain = true;
	o->to_linux = reason != REASON_PUNT_NOT_OURS || !route_back(p, s);
	if (route_through(&s->route))
		return opening_midstream(p, config, s);
	return o->midstream && p->tcp_flags & (TCP_RST | TCP_SYN) ? reason : CONTINUE;
}

/* Is it of a connection that has gone on without an entry so far? As far as can be told. */
always_inline bool opening_again(const struct config *config, const struct opening *o)
{
	return o->midstream && o->stateless && stateless_recently(config);
}

/* Is the firewall to be asked? CONTINUE, with what it is asked in the scratch; otherwise how the packet ends. Linux' own
 * connections, whose first packets have been let in, go on; what expires here is answered before it is judged, as Linux does it. */
never_inline int opening_ask(struct packet *p, const struct config *config, struct scratch *s, int reason)
{
	bool ours = reason == CONTINUE || reason == REASON_ANSWER_RESET;

	if (!ours && reason != REASON_PUNT_NOT_OURS && reason != REASON_PUNT_LOCAL && reason != REASON_PUNT_ICMP &&
	    reason != REASON_PUNT_MULTICAST)
		return reason;
	if ((firewall_spares(p) && !route_through(&s->route)) ||
	    (reason == REASON_PUNT_NOT_OURS && s->opening.nat && inbound_known(p, config)))
		return reason;
	if (reason == REASON_PUNT_NOT_OURS && p->ttl <= 1)
		return REASON_PUNT_TTL;
	s->judging.linux_knows = ours ? INBOUND_UNKNOWN : opening_of_linux(p);
	if (s->judging.linux_knows == INBOUND_REPLY)
		return reason;
	struct asked *a = &s->judging.asked;
	bool again = opening_again(config, &s->opening);
	a->ifindex_in = p->ifindex;
	a->ifindex_out = route_found(&s->route) ? s->route.fib.ifindex : 0;
	a->vlan = p->vlan_outer;
	a->tcp_flags = again ? TCP_SYN : p->tcp_flags;
	a->icmp_type = p->icmp_type;
	a->tos = p->tos;
	a->local = !route_through(&s->route);
	firewall_ask(&s->judging, &p->tuple, opening_leaves(s), config);
	s->judging.known = again;
	return CONTINUE;
}

/* What becomes of an accepted one. */
always_inline int opening_go_on(struct packet *p, const struct config *config, struct scratch *s, int reason)
{
	if (reason == CONTINUE || reason == REASON_ANSWER_RESET || s->opening.nat ||
	    s->judging.linux_knows == INBOUND_ORIGINAL)
		return reason;
	return opening_accepted(p, config, s, reason);
}

/* What the firewall makes of what the stages have decided. */
never_inline int opening_judge(struct packet *p, const struct config *config, struct scratch *s, int reason)
{
	int end = opening_ask(p, config, s, reason);

	if (end != CONTINUE)
		return end;
	if (firewall_judge(p->ctx) != FIREWALL_ACCEPT)
		return REFUSED;
	end = opening_go_on(p, config, s, reason);
	s->opening.judged = !s->judging.known;
	if (s->opening.judged && end != CONTINUE)
		firewall_count(s);
	return end;
}

/* Both entries. enum flow_result */
always_inline int opening_open(struct packet *p, struct scratch *s)
{
	s->forward.key = p->tuple;
	if (s->opening.judged)
		firewall_count(s);
	return s->opening.plain ? flow_open_plain(&s->forward, &s->answer, &s->ending) : nat_open(p->ctx);
}

/* The next hop of what Linux carries: none. */
always_inline void opening_to_linux(struct scratch *s, __u32 stamp)
{
	struct verdict *v = &s->entry.verdict;

	v->stamp = stamp;
	v->egress = EGRESS_NONE;
	v->mtu = 0;
	__builtin_memset(v->dmac, 0, sizeof(v->dmac));
}

/* There is no place for a connection that nothing of ours is needed for. */
always_inline int opening_left(struct packet *p, const struct scratch *s)
{
	return conclude(p, s->opening.to_linux ? REASON_PUNT_LOCAL : REASON_PUNT_NOT_OURS);
}

/* Opens nothing. What Linux gets it gets with all of its fragments, but for what expires here: it may live longer. */
always_inline int opening_failed(struct packet *p, int reason)
{
	if (reason == REFUSED)
		return stage(p, STAGE_REFUSE);
	if (reason < REASON_PUNT_NOT_IP || reason == REASON_PUNT_TTL || reason >= REASON_DROP_ETHERNET_SHORT)
		fragment_forget(p);
	if (reason == REASON_ANSWER_TTL_EXCEEDED || reason == REASON_ANSWER_RESET)
		return stage(p, STAGE_ANSWER);
	return conclude(p, reason);
}

/* Will this program send the packet itself? What goes on to another one is counted in the flow there. */
always_inline bool opening_sends(const struct packet *p, const struct scratch *s)
{
	if (packet_segment(p) > s->entry.verdict.mtu)
		return false;
#ifdef HOOK_XDP
	return s->route.result == BPF_FIB_LKUP_RET_SUCCESS && s->route.device.xdp_transmit;
#else
	return true;
#endif
}

always_inline int opening_stateless(struct packet *p, struct scratch *s)
{
	stateless_note();
	s->entry.key = p->tuple;
	return opening_send(p, s, REASON_FORWARD_STATELESS, true);
}

/* Is it Linux', and may be learned from there? */
always_inline bool opening_adopts(const struct packet *p, const struct config *config, int reason)
{
	if (!cw_adoption || config->firewall || !adopt_is_plain(p))
		return false;
	return reason == REASON_PUNT_NOT_OURS || reason == REASON_PUNT_LOCAL || reason == REASON_PUNT_KEPT;
}

/* What Linux' rules make of what is to be opened, if they count. */
never_inline int opening_honour(struct packet *p, struct scratch *s)
{
	if (!s->opening.honours || !honour_in_force())
		return CONTINUE;
	return s->opening.answers ? honour_later(p, s, &s->forward.leaves) : honour_first(p, s);
}

/* All that is to be known before anything is done. */
never_inline int opening_reason(struct packet *p, const struct config *config, struct scratch *s)
{
	const struct opening *o = &s->opening;
	int reason = opening_decide(p, config, s);

	if (config->firewall && !o->answers)
		reason = opening_judge(p, config, s, reason);
	if (reason == CONTINUE ||
	    (o->midstream && (reason == REASON_DROP_MIDSTREAM || reason == REASON_ANSWER_RESET))) {
		int honoured = opening_honour(p, s);
		if (honoured != CONTINUE)
			return honoured;
	}
	return reason;
}

always_inline int enter_open(struct packet *p, struct scratch *s)
{
	const struct config *config = config_of(epoch_now());
	const struct opening *o = &s->opening;
	__u32 stamp = generation(p);

	if (!config || !(config_claims(config) || adopt_is_plain(p)))
		return conclude(p, REASON_PUNT_NOT_OURS);
	opening_begin(p, s);
	int reason = opening_reason(p, config, s);
	if (reason == REASON_PUNT_NOT_OURS && !o->nat && (config->nats || config->origins))
		inbound_note(p, config, s);
	if (opening_adopts(p, config, reason)) {
		s->adopting.reason = reason;
		s->adopting.at_once = false;
		return stage(p, STAGE_ADOPT);
	}
	if (reason != CONTINUE)
		return opening_failed(p, reason);
	if (s->adopted) /* and claimed by now */
		flow_end(&s->ending, &p->tuple, FLOW_END_RELEASED);
	if (o->to_linux)
		opening_to_linux(s, stamp);
	else
		route_verdict(&s->route, stamp, &s->entry.verdict, &s->egress);
	if (o->answers)
		return opening_stateless(p, s);
	opening_entries(p, s);
	if (o->to_linux || opening_sends(p, s))
		s->forward.flow.carried = CARRIED_PACKET + p->length;
	switch (opening_open(p, s)) {
	case FLOW_CREATED:
		break;
	case FLOW_EXISTS: /* opened on another CPU a moment ago: look again */
		return stage(p, STAGE_KNOWN);
	case FLOW_TAKEN:
		return o->plain ? opening_left(p, s) : opening_failed(p, REASON_DROP_NO_PORT);
	default:
		if (o->to_linux)
			return opening_left(p, s);
		if (!o->stateless || o->nat)
			return opening_failed(p, REASON_DROP_TABLE_FULL);
		/* the port that was tried last is not needed: nothing of the source changes */
		s->forward.leaves.src = p->tuple.src;
		s->forward.leaves.sport = p->tuple.sport;
		return opening_stateless(p, s);
	}
	if (o->to_linux)
		return conclude(p, REASON_PUNT_LOCAL);
	if (o->honours && honour_in_force() && (reason = honour_opened(p, s)) != CONTINUE)
		return opening_failed(p, reason);
	if (o->service)
		service_count(o->endpoint);
	return opening_send(p, s, REASON_FORWARD_NEW, false);
}
