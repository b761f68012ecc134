/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors about flows (RFC 5508, RFC 4443): the packet quoted inside may have been translated when it
 * left, so the error must be translated back before its receiver can know what it speaks of. */
#pragma once

/* The packet that an error quotes. */
struct quote {
	void *l3;
	void *l4;	     /* the first eight bytes are there */
	__u32 header;	     /* bytes between the two */
	bool odd;	     /* options, extension headers, no ports: only the tuple is known */
	struct tuple *tuple; /* as it left here; in the scratch */
};

/* Does the quoted packet hold so much of layer 4? What follows in the frame may be padding. */
always_inline bool quote_fits(const struct packet *p, const struct quote *q, __u32 size)
{
	return parse_fits(p, sizeof(struct icmphdr) + q->header + size);
}

/* A first fragment has the ports that later ones have not. */
always_inline bool quote_fragment(const struct packet *p, struct quote *q)
{
	const struct frag_hdr *fragment = q->l4;

	if ((void *)(fragment + 1) > p->end || fragment->frag_off & IP6_OFFSET)
		return false;
	q->tuple->proto = fragment->nexthdr;
	q->l4 = (void *)(fragment + 1);
	q->header += sizeof(*fragment);
	return true;
}

/* Behind what the quotes of translated flows never have. offset: of `next`. */
never_inline bool quote_parse_odd(const struct packet *p, struct quote *q, __u32 offset, __u8 next)
{
	struct walk w = {.ctx = p->ctx, .offset = offset, .next = next, .all = true};
	struct icmphdr l4;

	q->odd = true;
	if (q->tuple->family == FAMILY_IPV6) {
		bpf_loop(EXTENSION_HEADERS_MAX + 1, walk_header, &w, 0);
		if (!w.done || w.reason != CONTINUE || w.fragment == FRAGMENT_LATER)
			return false;
	}
	q->tuple->proto = w.next;
	if (!has_ports(q->tuple))
		return true;
	if (packet_load(p, w.offset, &l4, sizeof(l4)) || w.offset - p->l3_offset + sizeof(l4) > p->l3_length)
		return false;
	if (is_icmp(q->tuple))
		return icmp_ports(q->tuple, &l4);
	q->tuple->sport = ((const struct udphdr *)&l4)->source;
	q->tuple->dport = ((const struct udphdr *)&l4)->dest;
	return true;
}

/* Only what is quoted far enough can be looked up. */
always_inline bool quote_parse(const struct packet *p, struct quote *q)
{
	__u32 offset = p->l4_offset + sizeof(struct icmphdr);
	struct tuple *t = q->tuple;
	__u32 behind; /* what all packets of the family have in front */
	__u8 next;
	bool odd;

	__builtin_memset(t, 0, sizeof(*t));
	t->family = p->tuple.family;
	q->odd = false;
	q->l3 = p->data + offset;
	if (t->family == FAMILY_IPV4) {
		const struct iphdr *ip = q->l3;
		if ((void *)(ip + 1) > p->end || ip->version != 4 || ip->ihl < 5 || ip->frag_off & IP_OFFSET)
			return false;
		t->src.v4 = ip->saddr;
		t->dst.v4 = ip->daddr;
		t->proto = ip->protocol;
		q->l4 = (void *)(ip + 1);
		q->header = sizeof(*ip);
		odd = ip->ihl != 5 || !has_ports(t);
		behind = offset + ip->ihl * 4;
		next = t->proto;
	} else {
		const struct ipv6hdr *ip = q->l3;
		if ((void *)(ip + 1) > p->end || ip->version != 6)
			return false;
		__builtin_memcpy(&t->src, &ip->saddr, sizeof(t->src));
		__builtin_memcpy(&t->dst, &ip->daddr, sizeof(t->dst));
		t->proto = ip->nexthdr;
		q->l4 = (void *)(ip + 1);
		q->header = sizeof(*ip);
		behind = offset + sizeof(*ip);
		next = t->proto;
		if (t->proto == EXTENSION_FRAGMENT && !quote_fragment(p, q))
			return false;
		odd = !has_ports(t);
	}
	if (q->l4 + 8 > p->end || !quote_fits(p, q, 8))
		return false;
	if (odd)
		return quote_parse_odd(p, q, behind, next);
	if (t->proto == IPPROTO_TCP || t->proto == IPPROTO_UDP) {
		t->sport = ((const struct udphdr *)q->l4)->source;
		t->dport = ((const struct udphdr *)q->l4)->dest;
		return true;
	}
	return icmp_ports(t, q->l4);
}

/* The quoted layer 4 checksum follows the quoted addresses and ports, where the quote reaches that far.
 * Returns the difference this makes to what covers it. */
always_inline __u32 quote_checksum(const struct packet *p, struct quote *q, __u32 addr_delta, __u32 port_delta)
{
	__u32 offset = q->tuple->proto == IPPROTO_TCP ? offsetof(struct tcphdr, check) :
		       q->tuple->proto == IPPROTO_UDP ? offsetof(struct udphdr, check) :
							offsetof(struct icmphdr, checksum);
	__u16 *checksum = q->l4 + offset;

	if ((void *)(checksum + 1) > p->end || !quote_fits(p, q, offset + sizeof(*checksum)))
		return 0;
	if (q->tuple->proto == IPPROTO_UDP && *checksum == 0)
		return 0;
	if (q->tuple->proto == IPPROTO_ICMP)
		addr_delta = 0; /* no pseudo header */
	__u16 from = *checksum;
	*checksum = checksum_apply(from, addr_delta + port_delta);
	if (q->tuple->proto == IPPROTO_UDP && *checksum == 0)
		*checksum = 0xffff;
	return delta16(from, *checksum);
}

always_inline void quote_ports(struct quote *q, const struct tuple *to)
{
	if (is_icmp(q->tuple)) {
		struct icmphdr *echo = q->l4;
		echo->echo.id = echo->type == icmp_request(to->family) ? to->sport : to->dport;
		return;
	}
	((struct udphdr *)q->l4)->source = to->sport;
	((struct udphdr *)q->l4)->dest = to->dport;
}

/* Rewrites the quoted packet to `to`; returns the difference to the ICMP checksum. v is the verdict of the
 * error's direction, whose differences are those of the quoted one: it is the same tuple, reversed. */
always_inline __u32 quote_rewrite(const struct packet *p, struct quote *q, const struct tuple *to,
				  const struct verdict *v)
{
	__u32 delta = quote_checksum(p, q, v->addr_delta, v->port_delta) + v->addr_delta + v->port_delta;

	quote_ports(q, to);
	if (to->family == FAMILY_IPV4) {
		struct iphdr *ip = q->l3;
		__u16 from = ip->check;
		ip->saddr = to->src.v4;
		ip->daddr = to->dst.v4;
		ip->check = checksum_apply(from, v->addr_delta);
		return delta + delta16(from, ip->check);
	}
	struct ipv6hdr *ip = q->l3;
	if ((void *)(ip + 1) > p->end)
		return delta; /* for the verifier: quote_parse has checked */
	__builtin_memcpy(&ip->saddr, &to->src, sizeof(to->src));
	__builtin_memcpy(&ip->daddr, &to->dst, sizeof(to->dst));
	return delta;
}

/* The outer header: to whoever sent the quoted packet; from where it seems to have gone, so that what lies
 * behind a service does not show (as nf_nat_icmp_reply_translation does it). Returns the difference. */
always_inline __u32 icmp_outer(struct packet *p, __u32 state, const struct tuple *leaves)
{
	struct tuple to = p->tuple;

	to.dst = leaves->dst;
	if (state & FLOW_SOURCE_NAT)
		to.src = leaves->src;
	__u16 delta = addr_delta(&p->tuple, &to);
	if (p->tuple.family == FAMILY_IPV4) {
		struct iphdr *ip = p->l3;
		ip->saddr = to.src.v4;
		ip->daddr = to.dst.v4;
		ip->ttl--;
		ip->check = checksum_apply(ip->check, (__u32)delta + DECREMENT_TTL);
		return 0;
	}
	struct ipv6hdr *ip = packet_ipv6(p);
	if (!ip)
		return 0;
	__builtin_memcpy(&ip->saddr, &to.src, sizeof(to.src));
	__builtin_memcpy(&ip->daddr, &to.dst, sizeof(to.dst));
	ip->hop_limit--;
	packet_header_changed(p, DECREMENT_HOP_LIMIT);
	return delta;
}

/* About nothing that is known here. */
always_inline int icmp_unknown(struct packet *p)
{
	const struct config *config = config_of(epoch_now());

	return config && config->firewall ? stage(p, STAGE_OPEN) : conclude(p, REASON_PUNT_ICMP);
}

/* Have the rules changed, and forbid the connection by now? */
never_inline bool icmp_forbidden(struct packet *p, struct scratch *s)
{
	const struct config *config = config_of(epoch_now());
	__u32 stamp = generation(p);

	if (!config || !config->firewall || s->entry.verdict.stamp == stamp)
		return false;
	return !known_judged(&s->entry, &s->ending.pair, stamp) && !known_allowed(p, config, s);
}

always_inline int enter_icmp(struct packet *p, struct scratch *s)
{
	struct quote q = {.tuple = &s->quoted};

	if (!p->l4 || !icmp_is_error(p) || !quote_parse(p, &q))
		return icmp_unknown(p);
	struct verdict *v = &s->entry.verdict;
	tuple_reverse(q.tuple, &s->entry.key);
	/* whose packet it was, is told; somebody else would be reached by whoever knows of a connection */
	if (!addr_equal(&p->tuple.dst, &s->entry.key.dst) || !flow_peek(&s->entry))
		return icmp_unknown(p);
	if (v->state & FLOW_ADOPTED)
		return conclude(p, REASON_PUNT_ICMP);
	if (q.odd && v->state & FLOW_TRANSLATED)
		return icmp_unknown(p);
	/* Whether the flow may go on is not for an error to decide, so the entry stays as it is. */
	s->forward.leaves = s->entry.leaves;
	route_lookup(p, s);
	if (icmp_forbidden(p, s))
		return conclude(p, REASON_DROP_FIREWALL);
	if (v->state & FLOW_LINUX)
		return conclude(p, REASON_PUNT_ICMP);
	if (p->ttl <= 1)
		return conclude(p, REASON_DROP_NO_ANSWER);
	if (!route_found(&s->route))
		return conclude(p, REASON_DROP_NO_ROUTE);
	route_egress(&s->route, 0, &s->egress);
	if (must_hand_over(&s->egress))
		return hand_over(p, REASON_DROP_NO_EGRESS);
#ifdef HOOK_XDP
	if (s->route.result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return hand_over(p, REASON_DROP_NO_NEIGHBOUR);
#endif
	tuple_reverse(&s->forward.leaves, &s->answer.leaves);
	__u32 delta = q.odd ? 0 : quote_rewrite(p, &q, &s->answer.leaves, v);
	delta += icmp_outer(p, v->state, &s->forward.leaves);
	struct icmphdr *icmp = p->l4;
	icmp->checksum = checksum_apply(icmp->checksum, delta);
	if (s->route.result == BPF_FIB_LKUP_RET_NO_NEIGH) {
		struct bpf_redir_neigh next;
		route_next_hop(&s->route, &next);
		count(p, REASON_FORWARD_ICMP_ERROR);
		return packet_neighbour(p, s->route.fib.ifindex, &next);
	}
	return send(p, s->route.fib.dmac, &s->egress, REASON_FORWARD_ICMP_ERROR);
}
