/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet of a known flow that needs a thought: it changes the connection's state, is a fragment, or comes
 * when the flow's next hop was resolved under an older generation. */
#pragma once

/* Does the packet change its connection's state? */
always_inline bool known_changes(const struct packet *p, __u32 state)
{
	if (p->fragment == FRAGMENT_LATER)
		return false;
	return !(state & FLOW_SENT_ACK) || p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST);
}

/* Both entries learn of it. 0: the connection is over, and this SYN opens another; or there is no such connection.
 * pair: room to work in. */
__noinline int known_change(struct segment *seg, struct peek *own, struct peek *pair)
{
	struct spot spot = {}, other = {};

	if (!seg || !own || !pair)
		return 0;
	for (int i = 0; i < PEEK_TRIES; i++) {
		tuple_reverse(&own->leaves, &pair->key);
		if (!flow_peek(pair) || !peek_leads_back(own, pair))
			return own->key.proto != IPPROTO_TCP;
		if (peek_spot_any(own, &spot) && peek_spot_any(pair, &other))
			break;
		if (!flow_peek(own)) /* it has just moved */
			return 0;
	}
	if (!spot.flow || !other.flow)
		return 1;
	if (own->key.proto != IPPROTO_TCP) {
		flow_sent(spot.flow, other.flow, FLOW_SENT_ACK);
		return 1;
	}
	if (tcp_is_open(seg->flags) && tcp_is_over(spot.flow->state))
		return 0;
	tcp_change(seg, spot.flow, other.flow);
	return 1;
}

always_inline bool known_state(struct packet *p, struct scratch *s)
{
	struct segment *seg = &s->segment;

	if (!known_changes(p, s->entry.verdict.state))
		return true;
	if (p->tuple.proto == IPPROTO_TCP) {
		if (!tcp_read(p, seg))
			return true;
		if (p->tcp_flags & TCP_SYN)
			seg->scale = tcp_scale(p, &s->options);
	}
	return known_change(seg, &s->entry, &s->ending.pair);
}

/* A stale flow keeps its translation as long as the endpoint is still there. */
always_inline bool known_keeps(const struct packet *p, struct scratch *s)
{
	struct ending *e = &s->ending;

	if (!(s->entry.verdict.state & FLOW_HAS_SERVICE))
		return true;
	e->entry.key = p->tuple;
	return flow_find_both(e) && e->paired && service_keeps(epoch_now(), e);
}

#define FLOW_TRANSLATED (FLOW_SOURCE_NAT | FLOW_DEST_NAT | FLOW_HAS_SERVICE | FLOW_HAS_NAT)

/* Has the direction that opened been judged as things are now? Then this reply shares its fate: of what the rules ask for, it
 * does not tell all (DSCP). */
never_inline bool known_judged(const struct peek *reply, struct peek *opening, __u32 stamp)
{
	if (!(reply->state & FLOW_REPLY))
		return false;
	tuple_reverse(&reply->leaves, &opening->key);
	return flow_peek(opening) && peek_leads_back(reply, opening) && opening->verdict.stamp == stamp;
}

/* Does this packet answer what this machine has opened, or somebody beyond an interface that is not clearway's? */
always_inline bool known_opened_here(const struct peek *e, const struct route *route)
{
	return e->state & FLOW_LINUX && e->state & FLOW_REPLY && !(route_found(route) && is_port(route->device.lower));
}

/* The rules may have changed. They are asked about the packet that opened the connection, as far as this one can tell; what
 * this machine has opened is not theirs to judge. */
never_inline bool known_allowed(struct packet *p, const struct config *config, struct scratch *s)
{
	const struct peek *e = &s->entry;
	__u32 next = route_found(&s->route) ? s->route.fib.ifindex : 0;
	struct asked *a = &s->judging.asked;

	if (!config->firewall || known_opened_here(e, &s->route))
		return true;
	a->tcp_flags = e->key.proto == IPPROTO_TCP ? TCP_SYN : 0;
	a->icmp_type = icmp_request(p->tuple.family);
	a->tos = p->tos;
	if (e->state & FLOW_REPLY) {
		a->ifindex_in = next;
		a->ifindex_out = p->ifindex;
		a->vlan = s->route.device.vlan_outer;
		a->local = false;
		tuple_reverse(&e->leaves, &s->answer.key);
		tuple_reverse(&e->key, &s->answer.leaves);
	} else {
		a->ifindex_in = p->ifindex;
		a->ifindex_out = next;
		a->vlan = p->vlan_outer;
		a->local = !route_through(&s->route);
		s->answer.key = e->key;
		s->answer.leaves = e->leaves;
	}
	firewall_ask(&s->judging, &s->answer.key, &s->answer.leaves, config);
	s->judging.known = true;
	return firewall_judge(p->ctx) == FIREWALL_ACCEPT;
}

/* The entry stays: without it the next packet of the other direction would open the connection again, the wrong way round.
 * It is asked for anew with each packet, and stays for as long as who has opened it goes on. */
always_inline void known_refused(struct scratch *s)
{
	if (!(s->entry.state & FLOW_REPLY))
		flow_touch(&s->entry);
}

always_inline int known_refuse(struct packet *p, struct scratch *s)
{
	known_refused(s);
	return stage(p, STAGE_REFUSE);
}

/* Where does the route lead now? For this packet, and for those that follow. What is not translated Linux can answer for. */
always_inline int known_resolve(__u32 stamp, struct scratch *s)
{
	if (!route_found(&s->route))
		return REASON_PUNT_LOCAL;
	route_verdict(&s->route, stamp, &s->entry.verdict, &s->egress);
	flow_resolve(&s->entry);
	return CONTINUE;
}

/* Out through the neighbour table: only TC can, so XDP hands over. */
always_inline int forward_neighbour(struct packet *p, const struct verdict *v, const struct route *route)
{
	struct bpf_redir_neigh next;

#ifdef HOOK_XDP
	return hand_over(p, REASON_DROP_NO_NEIGHBOUR);
#endif
	route_next_hop(route, &next);
	if (!rewrite(p, v, 1))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	count(p, REASON_FORWARD_NEIGHBOUR);
	return packet_neighbour(p, route->fib.ifindex, &next);
}

/* Must another hook or program finish this packet? */
always_inline bool must_hand_over(const struct egress *out)
{
#ifdef HOOK_XDP
	return !out->xdp_transmit;
#else
	return false;
#endif
}

/* Of a connection that Linux carries; as known(). */
always_inline int known_linux(struct packet *p, __u32 stamp, struct scratch *s, int *verdict)
{
	const struct config *config = config_of(epoch_now());
	struct verdict *v = &s->entry.verdict;

	*verdict = 0;
	if (v->stamp != stamp) {
		route_lookup(p, s);
		bool ours = !(v->state & FLOW_REPLY) && route_found(&s->route) && route_back(p, s);
		if (!config || !config->firewall || ours) { /* by now */
			flow_end(&s->ending, &p->tuple, FLOW_END_RELEASED);
			inbound_released(&s->entry.key, v->state);
			return CONTINUE;
		}
		if (!known_allowed(p, config, s)) {
			*verdict = known_refuse(p, s);
			return 0;
		}
		v->stamp = stamp;
		flow_resolve(&s->entry);
	}
	flow_refresh(&s->entry, p->length);
	*verdict = conclude(p, REASON_PUNT_LOCAL);
	return 0;
}

/* Of a connection that is Linux', too; as known(). What may end it is Linux' alone from then on. */
always_inline int known_adopted(struct packet *p, struct scratch *s, int *verdict)
{
	if (adopt_is_plain(p)) {
		s->adopted = true;
		return CONTINUE;
	}
	if (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		flow_end(&s->ending, &p->tuple, p->tcp_flags & TCP_RST ? FLOW_END_RESET : FLOW_END_LINUX);
	*verdict = conclude(p, REASON_PUNT_ADOPTED);
	return 0;
}

/* CONTINUE: not known any more, to be opened anew. Everything else: the hook's verdict in *verdict. */
always_inline int known(struct packet *p, __u32 stamp, struct scratch *s, int *verdict)
{
	int reason = p->fragment == FRAGMENT_LATER ? REASON_FORWARD_FRAGMENT : REASON_FORWARD_STATE;
	struct verdict *v = &s->entry.verdict;

	s->forward.leaves = s->entry.leaves;
	if (v->state & FLOW_ADOPTED)
		return known_adopted(p, s, verdict);
	if (!known_state(p, s)) {
		flow_end(&s->ending, &p->tuple, FLOW_END_REOPENED);
		return CONTINUE;
	}
	if (v->state & FLOW_LINUX)
		return known_linux(p, stamp, s, verdict);
	s->route.result = BPF_FIB_LKUP_RET_SUCCESS;
	if (v->stamp != stamp || !egress_read(v->egress, stamp, &s->egress)) {
		bool reply = v->state & FLOW_REPLY;
		if (!known_keeps(p, s)) {
			flow_end(&s->ending, &p->tuple, FLOW_END_ENDPOINT_GONE);
			if (!reply)
				return CONTINUE;
			*verdict = conclude(p, REASON_DROP_ENDPOINT_GONE);
			return 0;
		}
		const struct config *config = config_of(epoch_now());
		if (!config || (!config->firewall && !(v->state & FLOW_TRANSLATED))) {
			flow_end(&s->ending, &p->tuple, FLOW_END_RELEASED);
			inbound_released(&s->entry.key, v->state);
			return CONTINUE;
		}
		route_lookup(p, s);
		if (!route_found(&s->route) && v->state & FLOW_TRANSLATED) {
			*verdict = conclude(p, REASON_DROP_NO_ROUTE);
			return 0;
		}
		if (!known_judged(&s->entry, &s->ending.pair, stamp) && !known_allowed(p, config, s)) {
			*verdict = known_refuse(p, s);
			return 0;
		}
		int wrong = honour_known(p, s);
		if (wrong == CONTINUE)
			wrong = known_resolve(stamp, s);
		if (wrong != CONTINUE) {
			*verdict = conclude(p, wrong);
			return 0;
		}
		if (reason == REASON_FORWARD_STATE && !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
			reason = REASON_FORWARD_RESOLVED;
	}
	if (must_hand_over(&s->egress)) {
		*verdict = hand_over(p, REASON_DROP_NO_EGRESS);
		return 0;
	}
	if (p->ttl <= 1 || (route_found(&s->route) && packet_segment(p) > v->mtu)) {
		*verdict = stage(p, STAGE_ANSWER);
		return 0;
	}
	if (s->route.result == BPF_FIB_LKUP_RET_NO_NEIGH) {
#ifndef HOOK_XDP
		flow_refresh(&s->entry, p->length);
#endif
		*verdict = forward_neighbour(p, v, &s->route);
		return 0;
	}
	flow_refresh(&s->entry, p->length);
	*verdict = forward(p, v, &s->egress, reason);
	return 0;
}
