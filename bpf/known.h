/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet of a known flow that needs a thought: it changes the connection's state, is a fragment, or comes
 * when the flow's next hop was resolved under an older generation. */
#pragma once

/* A stale flow keeps its translation as long as the endpoint is still there. */
always_inline bool known_keeps(const struct packet *p, const struct flow *f, struct scratch *s)
{
	struct tuple *to = &s->leaves;

	if (!(f->flags & FLOW_HAS_SERVICE))
		return true;
	if (f->flags & FLOW_REPLY)
		tuple_reverse(&p->tuple, to);
	else
		flow_leaves(f, &p->tuple, to);
	return service_keeps(f, to);
}

always_inline int known_resolve(struct packet *p, struct flow *f, __u32 stamp, struct scratch *s)
{
	flow_leaves(f, &p->tuple, &s->leaves);
	route_lookup(p, s);
	int reason = route_reason(&s->route);
	if (reason != CONTINUE)
		return reason;
	route_store(&s->route, stamp, f);
	return CONTINUE;
}

/* Out through the neighbour table: only TC can, so XDP hands over. */
always_inline int forward_neighbour(struct packet *p, const struct flow *f, const struct route *route)
{
	struct bpf_redir_neigh next;

#ifdef HOOK_XDP
	return hand_over(p, REASON_DROP_NO_NEIGHBOUR);
#endif
	route_next_hop(route, &next);
	if (!rewrite(p, f, 1))
		return conclude(p, REASON_DROP_REWRITE_FAILED);
	count(p, REASON_FORWARD_NEIGHBOUR);
	return packet_neighbour(p, route->fib.ifindex, &next);
}

/* Must another hook or program finish this packet? */
always_inline bool must_hand_over(const struct flow *f)
{
#ifdef HOOK_XDP
	return f->flags & FLOW_NEEDS_TC;
#else
	return false;
#endif
}

/* What the connection's state says; false: the connection is over and this SYN opens another. */
always_inline bool known_state(struct packet *p, struct flow *f)
{
	if (p->tuple.proto != IPPROTO_TCP || p->fragment == FRAGMENT_LATER)
		return true;
	struct flow *other = flow_pair(f, &p->tuple);
	if (!other)
		return false;
	if (tcp_is_open(p->tcp_flags) && tcp_is_over(f, other))
		return false;
	tcp_change(p, f, other);
	return true;
}

/* CONTINUE: not known any more, to be opened anew. Everything else: the hook's verdict in *verdict. */
always_inline int known(struct packet *p, struct flow *f, __u32 stamp, struct scratch *s, int *verdict)
{
	int reason = p->fragment == FRAGMENT_LATER ? REASON_FORWARD_FRAGMENT : REASON_FORWARD_STATE;

	if (!known_state(p, f)) {
		flow_delete_pair(f, &p->tuple);
		return CONTINUE;
	}
	s->route.result = BPF_FIB_LKUP_RET_SUCCESS;
	if (f->stamp != stamp) {
		bool reply = f->flags & FLOW_REPLY;
		if (!known_keeps(p, f, s)) {
			flow_delete_pair(f, &p->tuple);
			if (!reply)
				return CONTINUE;
			*verdict = conclude(p, REASON_DROP_ENDPOINT_GONE);
			return 0;
		}
		int wrong = known_resolve(p, f, stamp, s);
		if (wrong != CONTINUE) {
			*verdict = conclude(p, wrong);
			return 0;
		}
		if (reason == REASON_FORWARD_STATE && !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
			reason = REASON_FORWARD_RESOLVED;
	}
	if (must_hand_over(f)) {
		*verdict = hand_over(p, REASON_DROP_NO_EGRESS);
		return 0;
	}
	if (p->ttl <= 1 || (f->stamp && packet_segment(p) > f->mtu)) {
		*verdict = stage(p, STAGE_ANSWER);
		return 0;
	}
	if (s->route.result == BPF_FIB_LKUP_RET_NO_NEIGH) {
#ifndef HOOK_XDP
		flow_refresh(f, p->length);
#endif
		*verdict = forward_neighbour(p, f, &s->route);
		return 0;
	}
	flow_refresh(f, p->length);
	*verdict = forward(p, f, reason);
	return 0;
}
