/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a flow: service -> route -> source NAT -> both entries -> forward. Whatever no service
 * and no rule claims goes to Linux as it came. */
#pragma once

#define ANY_PORT_MIN 1
#define ANY_PORT_MAX 65535

/* What is found out about a first packet on its way through the stages. */
struct opening {
	const struct config *config;
	const struct service *service; /* NULL: not addressed to one */
	const struct nat *nat;	       /* NULL: source not claimed */
	__u32 endpoint;
	bool midstream; /* TCP, and not a SYN */
};

/* A TCP segment without SYN and without flow: pick up, or not. Only asked for traffic that is ours. */
always_inline int opening_midstream(const struct packet *p, const struct opening *o)
{
	if (!o->midstream)
		return CONTINUE;
	if (p->tcp_flags & (TCP_RST | TCP_SYN) || o->config->midstream == MIDSTREAM_DROP)
		return REASON_DROP_MIDSTREAM;
	return o->config->midstream == MIDSTREAM_RESET ? REASON_ANSWER_RESET : CONTINUE;
}

always_inline int opening_service(struct packet *p, struct opening *o, struct scratch *s)
{
	s->leaves = p->tuple;
	o->service = NULL;
	if (!o->config->services || is_icmp(&p->tuple))
		return CONTINUE;
	o->service = service_lookup(o->config->epoch, &p->tuple);
	if (!o->service)
		return CONTINUE;
	if (p->ttl <= 1)
		return REASON_ANSWER_TTL_EXCEEDED;
	int reason = opening_midstream(p, o);
	if (reason != CONTINUE)
		return reason;
	const struct endpoint *endpoint = service_endpoint(o->service, &p->tuple, &o->endpoint);
	if (!endpoint)
		return REASON_DROP_NO_ENDPOINT;
	s->leaves.dst = endpoint->address;
	s->leaves.dport = endpoint->port;
	return CONTINUE;
}

always_inline int opening_route(struct packet *p, struct opening *o, struct scratch *s)
{
	route_lookup(p, s);
	if (o->service)
		return route_reason(&s->route);
	return route_found(&s->route) ? CONTINUE : REASON_PUNT_LOCAL;
}

always_inline int opening_full_nat(struct packet *p, struct opening *o, struct scratch *s)
{
	struct source *source = &s->source;

	if (!nat_device_address(&s->route.device, p->tuple.family, &source->address))
		return REASON_DROP_NO_ADDRESS;
	source->port_min = o->service->port_min;
	source->port_max = o->service->port_max;
	source->host = true;
	return CONTINUE;
}

always_inline int opening_source(struct packet *p, struct opening *o, struct scratch *s)
{
	struct source *source = &s->source;

	o->nat = NULL;
	if (o->service && o->service->mode == MODE_FULL_NAT)
		return opening_full_nat(p, o, s);
	if (o->config->nats)
		o->nat = nat_lookup(o->config->epoch, s->route.fib.ifindex, &p->tuple);
	if (!o->nat) {
		source->address = p->tuple.src;
		source->port_min = ANY_PORT_MIN;
		source->port_max = ANY_PORT_MAX;
		source->host = false;
		return o->service ? CONTINUE : REASON_PUNT_NOT_OURS;
	}
	source->port_min = o->nat->port_min;
	source->port_max = o->nat->port_max;
	source->host = !o->nat->addresses;
	if (o->nat->addresses)
		nat_pool_address(o->nat, &p->tuple, &source->address);
	else if (!nat_device_address(&s->route.device, p->tuple.family, &source->address))
		return REASON_DROP_NO_ADDRESS;
	return CONTINUE;
}

/* What a NAT rule claims but cannot be the first packet of a flow. Linux answers an expired TTL: nothing is
 * translated yet. */
always_inline int opening_nat_only(struct packet *p, const struct opening *o)
{
	if (o->service)
		return CONTINUE;
	if (p->ttl <= 1)
		return REASON_PUNT_TTL;
	if (is_icmp(&p->tuple) && p->icmp_type != icmp_request(p->tuple.family))
		return REASON_PUNT_ICMP; /* an echo reply nobody asked for, a fragmented error */
	if (inbound_answer(p, o->config))
		return REASON_PUNT_NOT_OURS;
	return opening_midstream(p, o);
}

always_inline void opening_entries(struct packet *p, struct opening *o, struct scratch *s, __u32 stamp)
{
	struct flow *forward = &s->forward, *reply = &s->answer;
	bool source_nat = !addr_equal(&s->source.address, &p->tuple.src);

	__builtin_memset(forward, 0, sizeof(*forward));
	forward->created = forward->seen = now();
	if (o->service) {
		forward->service = o->service->id;
		forward->endpoint = o->endpoint;
		forward->flags |= FLOW_HAS_SERVICE | (o->service->mode == MODE_FULL_NAT ? FLOW_FULL_NAT : 0);
	}
	if (o->nat) {
		forward->nat = o->nat->id;
		forward->flags |= FLOW_HAS_NAT;
	}
	if (o->midstream)
		forward->flags |= FLOW_PICKED_UP;
	*reply = *forward;
	reply->flags |= FLOW_REPLY | (source_nat ? FLOW_DEST_NAT : 0) | (o->service ? FLOW_SOURCE_NAT : 0);
	reply->tcp_scale = o->midstream ? TCP_SCALE_MAX : 0;
	forward->flags |= (source_nat ? FLOW_SOURCE_NAT : 0) | (o->service ? FLOW_DEST_NAT : 0);
	forward->tcp_scale = reply->tcp_scale;
	route_store(&s->route, stamp, forward);
	if (p->tuple.proto == IPPROTO_TCP && o->midstream) {
		tcp_track(p, forward);
		forward->sent |= p->tcp_flags & TCP_FIN ? SENT_FIN : 0;
	} else if (p->tuple.proto == IPPROTO_TCP)
		tcp_opened(p, forward);
}

always_inline int opening_send(struct packet *p, struct scratch *s, const struct flow *f)
{
	if (s->route.result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return forward_neighbour(p, f, &s->route);
	if (must_hand_over(f))
		return hand_over(p, REASON_DROP_NO_EGRESS);
	if (packet_segment(p) > f->mtu)
		return stage(p, STAGE_ANSWER);
	return forward(p, f, REASON_FORWARD_NEW);
}

/* All stages that decide, none that acts. CONTINUE: the flow may be opened. */
always_inline int opening_decide(struct packet *p, struct opening *o, struct scratch *s)
{
	int reason;

	if ((reason = opening_service(p, o, s)) != CONTINUE)
		return reason;
	if ((reason = opening_route(p, o, s)) != CONTINUE)
		return reason;
	if ((reason = opening_source(p, o, s)) != CONTINUE)
		return reason;
	return opening_nat_only(p, o);
}

always_inline int opening_failed(struct packet *p, int reason)
{
	if (reason == REASON_ANSWER_TTL_EXCEEDED || reason == REASON_ANSWER_RESET)
		return stage(p, STAGE_ANSWER);
	return conclude(p, reason);
}

/* Will this program send the packet itself? What goes on to another one is counted in the flow there. */
always_inline bool opening_sends(const struct packet *p, const struct scratch *s)
{
	if (s->route.result == BPF_FIB_LKUP_RET_SUCCESS && packet_segment(p) > s->forward.mtu)
		return false;
#ifdef HOOK_XDP
	return s->route.result == BPF_FIB_LKUP_RET_SUCCESS && s->route.device.xdp_transmit;
#else
	return true;
#endif
}

always_inline int open_flow(struct packet *p, __u32 stamp, struct scratch *s)
{
	struct opening o = {.config = config_of(active_now().epoch),
			    .midstream = p->tuple.proto == IPPROTO_TCP && !tcp_is_open(p->tcp_flags)};

	if (!o.config)
		return conclude(p, REASON_PUNT_NOT_OURS);
	int reason = opening_decide(p, &o, s);
	if (reason == REASON_PUNT_NOT_OURS && !o.nat && o.config->nats)
		inbound_note(p, o.config, s);
	if (reason != CONTINUE)
		return opening_failed(p, reason);
	opening_entries(p, &o, s, stamp);
	if (opening_sends(p, s)) {
		s->forward.packets = 1;
		s->forward.bytes = p->length;
	}
	switch (nat_open(p, s)) {
	case FLOW_CREATED:
		break;
	case FLOW_EXISTS: /* opened on another CPU a moment ago: look again */
		return stage(p, STAGE_FIRST);
	case FLOW_TAKEN:
		return conclude(p, REASON_DROP_NO_PORT);
	default:
		return conclude(p, REASON_DROP_TABLE_FULL);
	}
	if (o.service)
		service_count(o.endpoint);
	return opening_send(p, s, &s->forward);
}
