/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections that Linux holds, and that nothing of clearway's own claims: learned from its conntrack, and carried as Linux
 * would. Linux has accepted them and has chosen their translation; SYN, FIN, RST, fragments, expired and too large packets
 * stay its own, and it is asked again every so often. What its rules would do with the packets in between was proved by the
 * control plane (src/clearway/proof): struct trust names the ruleset that this holds for, and classifiers name the packets
 * that it does not hold for.
 *
 *   enter_adopt       the stage: proves and learns, or leaves the packet to Linux
 */
#pragma once

/* ---- what is proved of the ruleset ---- */

/* Are there as many policies of IPsec as were known? One that is added also changes the generation of routes (xfrm_policy_insert,
 * net/xfrm/xfrm_policy.c), so that each flow comes here. And does what none is about go on as it is? */
always_inline bool adopt_trusts_policies(struct net *net, const struct trust *trust)
{
	const unsigned int *count = net->xfrm.policy_count;

	if (count[XFRM_POLICY_OUT] + count[XFRM_POLICY_FWD] != READ_ONCE(trust->policies))
		return false;
	if (!bpf_core_field_exists(net->xfrm.policy_default))
		return true;
	return net->xfrm.policy_default[XFRM_POLICY_OUT] != XFRM_USERPOLICY_BLOCK &&
	       net->xfrm.policy_default[XFRM_POLICY_FWD] != XFRM_USERPOLICY_BLOCK;
}

/* Is what netfilter, IPsec and the like would do to this packet's family known, for the rules that are in force now? The
 * stamp must have been read before. */
always_inline bool adopt_trusts(struct packet *p, struct scratch *s)
{
	struct net *net = packet_net(p);

	s->adopting.trusted = trust_what(net);
	const struct trust *trust = trust_now();
	if (!trust || (bpf_core_field_exists(net->xfrm) && !adopt_trusts_policies(net, trust)))
		return false;
	return s->adopting.trusted & (p->tuple.family == FAMILY_IPV4 ? TRUST_IPV4 : TRUST_IPV6);
}

/* Who leaves by that device is asked about; 0: nobody knows it yet. */
always_inline void adopt_passing(const struct packet *p, struct scratch *s, __u32 outside)
{
	s->passing.arrives = p->tuple;
	s->passing.leaves = s->forward.leaves;
	s->passing.inside = p->ifindex;
	s->passing.outside = outside;
	s->passing.mark = s->adopting.class;
}

/* Might a rule that only Linux can follow meet the packet, or one that does not accept it? */
always_inline bool adopt_keeps(struct packet *p, struct scratch *s)
{
	adopt_passing(p, s, s->route.fib.ifindex);
	return views_tell(trust_places(KEEP_PLACES, s->adopting.trusted));
}

/* ---- marks ---- */

always_inline const struct marking *adopt_marking(const struct scratch *s)
{
	__u32 other = !!(s->adopting.trusted & TRUST_OTHER);

	return bpf_map_lookup_elem(&marking_v1, &other);
}

/* Finds the class of the connection's mark. 0: rules do something with such connections that only Linux can. */
__noinline int adopt_class(void)
{
	struct scratch *s = scratch_get();
	const struct marking *marking = s ? adopt_marking(s) : NULL;

	if (!marking)
		return 0;
	for (__u32 i = 0; i < MARK_TESTS && i < marking->tests; i++) {
		const struct mark_test *test = &marking->test[i];
		if ((s->adopting.mark & test->mask) == test->value) {
			s->adopting.class = test->class;
			return 1;
		}
	}
	return 0;
}

/* Finds which mark the packet has there (enum marked_where). 0: that is not known. */
__noinline int adopt_mark(__u32 where)
{
	struct scratch *s = scratch_get();
	struct classify *c = classify_here();
	const struct marking *marking = s ? adopt_marking(s) : NULL;

	if (!marking || !c || where >= MARKED_PLACES)
		return 0;
	__u32 six = s->parsed.tuple.family == FAMILY_IPV6;
	__u32 row = six * MARKED_PLACES + where, number = 0;
	keep_register(row);
	const struct mark_told *told = &marking->told[row & (2 * MARKED_PLACES - 1)];
	if (told->asked) {
		views_asked(s);
		views_see(s, &c->fields, told->view);
		if (classify(trust_places(MARK_PLACES, s->adopting.trusted) | where << 1 | six) == CLASSIFY_NONE)
			return 0;
		number = c->told;
	}
	if (number >= MARKS_MADE)
		return 0;
	keep_register(number);
	number &= MARKS_MADE - 1;
	__u32 mark = (s->adopting.mark & told->made[number].connection) ^ told->made[number].toggle;
	*(where == MARKED_ROUTED ? &s->adopting.routed : &s->adopting.left) = mark;
	return 1;
}

/* Is it known with which mark Linux would route the packet? */
always_inline bool adopt_marks(const struct packet *p, struct scratch *s)
{
	s->adopting.class = 0;
	s->adopting.routed = s->adopting.left = 0;
	if (!(s->adopting.trusted & TRUST_MARKED))
		return true;
	if (!adopt_class())
		return false;
	adopt_passing(p, s, 0);
	return adopt_mark(MARKED_ROUTED) && route_takes(s->adopting.routed);
}

/* And with which one it would send it? */
always_inline bool adopt_marks_left(struct scratch *s)
{
	if (s->adopting.trusted & TRUST_MARKED && !adopt_mark(MARKED_LEFT))
		return false;
	s->route.mark = s->adopting.left;
	return true;
}

/* ---- the way back ---- */

/* Would Linux take the packet to come from where it says (net/ipv4/fib_frontend.c, fib_validate_source), or at all
 * (net/ipv6/ip6_input.c: disable_ipv6)? Of a VLAN's settings the packet's context does not tell: there the way to the sender has to
 * lead out by it, with the mark and without. */
never_inline bool adopt_back(struct packet *p, struct scratch *s)
{
	struct net_device *device = packet_device(p);
	const struct in_device *in = device->ip_ptr;
	const struct ipv4_devconf *all = device->nd_net.net->ipv4.devconf_all;

	if (p->tuple.family != FAMILY_IPV4) {
		const struct inet6_dev *in6 = device->ip6_ptr;
		return (__u32)device->ifindex != p->ifindex || (in6 && !in6->cnf.disable_ipv6);
	}
	if (!in || !all || (__u32)device->ifindex != p->ifindex)
		return route_back(p, s) && (!s->adopting.routed || route_back_marked(p, s, s->adopting.routed));
	__u32 filter = in->cnf.data[IPV4_DEVCONF_RP_FILTER - 1], every = all->data[IPV4_DEVCONF_RP_FILTER - 1];
	if (every > filter)
		filter = every;
	bool marked = in->cnf.data[IPV4_DEVCONF_SRC_VMARK - 1] || all->data[IPV4_DEVCONF_SRC_VMARK - 1];
	if (route_back_marked(p, s, marked ? s->adopting.routed : 0))
		return true;
	if (!route_leads(s->back_result))
		return false;
	return filter == RP_FILTER_NONE || (filter == RP_FILTER_LOOSE && in->ifa_list);
}

/* enum back: what rules want of the way to the sender of the packet, as it arrived. 0: nothing. */
__noinline int adopt_wants_back(void)
{
	struct scratch *s = scratch_get();
	struct classify *c = classify_here();

	if (!s || !c)
		return BACK_STRICT;
	views_asked(s);
	views_see(s, &c->fields, VIEW_BEFORE);
	__u32 place = trust_places(KEEP_PLACES, s->adopting.trusted) | VIEW_BACK << 1;
	return classify(place | (s->passing.arrives.family == FAMILY_IPV6)) != CLASSIFY_NONE ? c->told : 0;
}

/* Is it so, for the way from that address? Rules look it up as if this machine itself sent an answer (`iif lo`); nftables' with the
 * protocol, which policy rules may ask for, and iptables' over IPv4 without (net/ipv4/netfilter/nft_fib_ipv4.c, ipt_rpfilter.c). */
never_inline bool adopt_leads_back(const struct packet *p, struct scratch *s, const union addr *from, __u32 back,
				   bool both)
{
	struct bpf_fib_lookup *fib = &s->back;

	for (__u32 i = 0; i < 2; i++) {
		route_back_ask(p, from, fib);
		fib->ifindex = LOOPBACK_IFINDEX;
		fib->l4_protocol = i ? 0 : p->tuple.proto;
		if (!route_back_found(p, s, 0) || (back != BACK_LOOSE && fib->ifindex != p->ifindex))
			return false;
		if (!both)
			break;
	}
	return true;
}

/* Are there policy rules besides those that are there from the start? */
always_inline bool adopt_policy_rules(struct packet *p)
{
	struct net *net = packet_net(p);

	if (p->tuple.family == FAMILY_IPV4)
		return bpf_core_field_exists(net->ipv4.fib_has_custom_rules) && net->ipv4.fib_has_custom_rules;
	return bpf_core_field_exists(net->ipv6.fib6_has_custom_rules) && net->ipv6.fib6_has_custom_rules;
}

/* Do rules that look for a way to the sender find one? Those that stand behind the translation of the destination look from
 * there. Strict ones of ip6tables have policy rules look at the device as well (ip6t_rpfilter.c), which no program can. */
always_inline bool adopt_is_answerable(struct packet *p, struct scratch *s)
{
	__u32 back = adopt_wants_back();
	const union addr *from = &p->tuple.dst, *leaves = &s->forward.leaves.dst;

	if (!back)
		return true;
	bool policy = adopt_policy_rules(p);
	if (back == BACK_DEVICE && policy)
		return false;
	bool both = policy && p->tuple.family == FAMILY_IPV4;
	return adopt_leads_back(p, s, from, back, both) &&
	       (addr_equal(from, leaves) || adopt_leads_back(p, s, leaves, back, both));
}

/* ---- what changes in packets ---- */

/* What rules change in the packet; false: they have routing see another type of service, and find another way by it. */
always_inline bool adopt_mangles(struct packet *p, struct scratch *s)
{
	__u32 ifindex = s->route.fib.ifindex;
	__u8 tos = p->tos;

	s->adopting.mangle =
		(__u32)views_tell(trust_places(MANGLE_PLACES, s->adopting.trusted)) << FLOW_MANGLE_SHIFT & FLOW_MANGLE;
	const struct mangle *m = mangle_of(FLOW_ADOPTED | s->adopting.mangle);
	if (!m || !m->early)
		return true;
	p->tos = mangle_tos(m, tos);
	route_lookup_marked(p, s, s->adopting.routed);
	bool same = s->route.result == BPF_FIB_LKUP_RET_SUCCESS && s->route.fib.ifindex == ifindex && adopt_back(p, s);
	p->tos = tos;
	return same;
}

/* ---- what Linux' conntrack holds ---- */

#define ADOPT_NEEDED (IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED)
#define ADOPT_NEVER (IPS_SEQ_ADJUST | IPS_DYING | IPS_TEMPLATE | IPS_HELPER | IPS_OFFLOAD | IPS_HW_OFFLOAD)

#define ct_extension(CT, ID) \
	(bpf_core_enum_value_exists(enum nf_ct_ext_id, ID) ? \
		 (CT)->ext->offset[bpf_core_enum_value(enum nf_ct_ext_id, ID)] : \
		 0)

/* Established, and nobody but conntrack itself has to see its packets: no helper, no sequence numbers to adjust (helpers, and
 * synproxy), no timeout of its own. */
always_inline bool adopt_ct_plain(const struct nf_conn *ct, __u8 proto)
{
	unsigned long status = ct->status;

	if ((status & ADOPT_NEEDED) != ADOPT_NEEDED || status & ADOPT_NEVER)
		return false;
	if (proto == IPPROTO_TCP && ct->proto.tcp.state != TCP_CONNTRACK_ESTABLISHED)
		return false;
	if (!ct->ext)
		return true;
	return !ct_extension(ct, NF_CT_EXT_HELPER) && !ct_extension(ct, NF_CT_EXT_TIMEOUT);
}

/* The device by which a masqueraded connection leaves; 0: any. By another one Linux does not let it go on
 * (include/net/netfilter/nf_nat.h, nf_nat_oif_changed). */
always_inline __u32 adopt_masquerade(const struct nf_conn *ct)
{
	__u32 offset = ct->ext ? ct_extension(ct, NF_CT_EXT_NAT) : 0;
	__u32 ifindex = 0;

	if (offset) {
		const struct nf_conn_nat *nat = (const void *)ct->ext + offset;
		bpf_core_read(&ifindex, sizeof(ifindex), &nat->masq_index);
	}
	return ifindex;
}

/* The packet leaves as the reverse of what the other direction arrives as. */
#define ADOPT_LEAVES(OTHER, OUT) \
	do { \
		(OUT)->src.words[0] = (OTHER)->dst.u3.all[0]; \
		(OUT)->src.words[1] = (OTHER)->dst.u3.all[1]; \
		(OUT)->src.words[2] = (OTHER)->dst.u3.all[2]; \
		(OUT)->src.words[3] = (OTHER)->dst.u3.all[3]; \
		(OUT)->dst.words[0] = (OTHER)->src.u3.all[0]; \
		(OUT)->dst.words[1] = (OTHER)->src.u3.all[1]; \
		(OUT)->dst.words[2] = (OTHER)->src.u3.all[2]; \
		(OUT)->dst.words[3] = (OTHER)->src.u3.all[3]; \
		(OUT)->sport = (OTHER)->dst.u.all; \
		(OUT)->dport = (OTHER)->src.u.all; \
	} while (0)

/* ms that Linux would give the connection now, as it sees none of the packets that would keep it alive: what it gives to any
 * established one; or to one of TCP that gets no answers (net/netfilter/nf_conntrack_proto_tcp.c), which may be dead. */
always_inline __u32 adopt_timeout(struct net *net, __u8 proto, bool answered)
{
	__u64 jiffies = proto != IPPROTO_TCP ? net->ct.nf_ct_proto.udp.timeouts[UDP_CT_REPLIED] :
			answered	     ? net->ct.nf_ct_proto.tcp.timeouts[TCP_CONNTRACK_ESTABLISHED] :
					       net->ct.nf_ct_proto.tcp.timeouts[TCP_CONNTRACK_UNACK];
	__u64 ms = jiffies * 1000 / (cw_hz ?: 1);

	return ms > 0xffffffff ? 0xffffffff : ms;
}

/* Asks Linux for the connection. 0: it is not to be adopted; otherwise s->forward.leaves is how the packet leaves. */
__noinline int adopt_ask(context *ctx)
{
	struct packet p = {.ctx = ctx};
	struct scratch *s = scratch_get();
	struct bpf_ct_opts opts = {};

	keep_register(ctx);
	if (!s || !cw_adoption) /* here: the verifier goes through a function that nobody calls */
		return 0;
	struct tuple *leaves = &s->forward.leaves;
	__u8 proto = s->parsed.tuple.proto;
	struct net *net = packet_net(&p);
	__u32 timeout = adopt_timeout(net, proto, s->adopting.life == LIFE_ANSWERED);
	struct nf_conn *ct = inbound_ct(ctx, &s->parsed.tuple, &opts);
	s->adopting.soon = false;
	if (!ct)
		return 0;
	s->adopting.soon = proto == IPPROTO_TCP && !(ct->status & IPS_ASSURED);
	bool plain = adopt_ct_plain(ct, proto);
	if (plain) {
		s->adopting.mark = ct->mark;
		*leaves = s->parsed.tuple;
		if (opts.dir)
			ADOPT_LEAVES(&ct->tuplehash[0].tuple, leaves);
		else
			ADOPT_LEAVES(&ct->tuplehash[1].tuple, leaves);
		s->adopting.reply = opts.dir;
		s->adopting.masquerade = opts.dir ? 0 : adopt_masquerade(ct);
		s->adopting.told = ct->ext && ct_extension(ct, NF_CT_EXT_ECACHE);
		if (s->adopting.life != LIFE_LINUX)
			bpf_ct_change_timeout(ct, timeout);
	}
	bpf_ct_release(ct);
	return plain;
}

/* ---- the stage ---- */

/* The time that an entry notes as when Linux was asked. */
always_inline __u32 adopt_asked(const struct packet *p, const struct scratch *s)
{
	return adopt_asked_of(p, s->adopting.told ? 0 : ticks(ADOPT_AGAIN_MS) - ticks(ADOPT_UNTOLD_MS));
}

/* Would Linux translate the packet, if it is to be? */
always_inline bool adopt_translates(const struct packet *p, const struct scratch *s)
{
	const struct tuple *key = &p->tuple, *leaves = &s->forward.leaves;
	__u32 nat = key->family == FAMILY_IPV4 ? TRUST_NAT_IPV4 : TRUST_NAT_IPV6;

	return s->adopting.trusted & nat ||
	       (key->sport == leaves->sport && key->dport == leaves->dport && addr_equal(&key->src, &leaves->src) &&
		addr_equal(&key->dst, &leaves->dst));
}

/* Rules may name devices that came after they were read. */
always_inline bool adopt_knows_devices(const struct packet *p, const struct scratch *s)
{
	__u32 ifindex = p->ifindex;
	const struct device *in = bpf_map_lookup_elem(&device_v1, &ifindex);

	return in && in->proved && s->route.device.proved;
}

/* What Linux would do with the packet, from its own conntrack, rules and routes. CONTINUE: forward it. */
never_inline int adopt_decide(struct packet *p, struct scratch *s)
{
	bool trusted = adopt_trusts(p, s);

	if (!adopt_ask(p->ctx))
		return s->adopting.reason;
	if (!trusted)
		return REASON_PUNT_UNPROVEN;
	if (!adopt_marks(p, s))
		return REASON_PUNT_KEPT;
	route_lookup_marked(p, s, s->adopting.routed);
	/* it asks for the neighbour's address, and tells who could go a shorter way (ICMP redirect) */
	if (s->route.result != BPF_FIB_LKUP_RET_SUCCESS || s->route.fib.ifindex == p->ifindex || !adopt_back(p, s))
		return s->adopting.reason;
	if (!adopt_knows_devices(p, s))
		return REASON_PUNT_UNPROVEN;
	if (!adopt_translates(p, s) || (s->adopting.masquerade && s->adopting.masquerade != s->route.fib.ifindex))
		return REASON_PUNT_KEPT;
	s->adopting.way.inside = p->ifindex;
	s->adopting.way.outside = s->route.fib.ifindex;
	if (p->ifindex > WAY_MAX || s->route.fib.ifindex > WAY_MAX)
		return s->adopting.reason;
	if (adopt_keeps(p, s) || !adopt_is_answerable(p, s) || !adopt_mangles(p, s) || !adopt_marks_left(s))
		return REASON_PUNT_KEPT;
	return CONTINUE;
}

/* Both entries. The other direction's next hop is found, and its rules are asked, when its first packet comes. */
never_inline void adopt_entries(struct packet *p, struct scratch *s)
{
	struct flow *forward = &s->forward.flow, *answer = &s->answer.flow;
	const struct tuple *key = &p->tuple, *leaves = &s->forward.leaves;
	__u32 both = p->tuple.proto | FLOW_ADOPTED | FLOW_SENT_ACK | FLOW_HEARD_ACK;
	bool source = !addr_equal(&key->src, &leaves->src) || key->sport != leaves->sport;
	bool dest = !addr_equal(&key->dst, &leaves->dst) || key->dport != leaves->dport;
	struct tuple was = *key;

	__builtin_memset(forward, 0, sizeof(*forward));
	__builtin_memset(answer, 0, sizeof(*answer));
	forward->seen = answer->seen = s->answer.rare = now();
	s->forward.rare = s->adopting.mark;
	s->forward.nat = s->answer.nat = 0;
	s->forward.moving = s->answer.moving = 0;
	if (s->adopting.reply) {
		tuple_reverse(leaves, &s->forward.key);
		tuple_reverse(&was, &s->forward.leaves);
		bool swap = source;
		source = dest;
		dest = swap;
	} else {
		s->forward.key = was;
	}
	forward->state = both | (source ? FLOW_SOURCE_NAT : 0) | (dest ? FLOW_DEST_NAT : 0);
	answer->state = both | FLOW_REPLY | (source ? FLOW_DEST_NAT : 0) | (dest ? FLOW_SOURCE_NAT : 0);
	forward->tcp_next = answer->tcp_next = adopt_asked(p, s);
	struct flow *mine = s->adopting.reply ? answer : forward;
	flow_hop(&s->entry.verdict, mine);
	flow_lead(mine, &s->adopting.way);
	mine->state |= s->adopting.mangle;
}

/* The verdict for this packet; entry.verdict has the next hop. */
always_inline void adopt_verdict(const struct packet *p, struct scratch *s)
{
	struct verdict *v = &s->entry.verdict;
	const struct tuple *leaves = &s->forward.leaves;

	v->state = FLOW_ADOPTED | s->adopting.mangle;
	v->src = leaves->src;
	v->dst = leaves->dst;
	v->sport = leaves->sport;
	v->dport = leaves->dport;
	v->addr_delta = addr_delta(&p->tuple, leaves);
	v->port_delta = delta16(p->tuple.sport, v->sport) + delta16(p->tuple.dport, v->dport);
}

/* The connection is Linux' alone from now on. */
always_inline void adopt_release(struct packet *p, struct scratch *s)
{
	flow_end(&s->ending, &p->tuple, FLOW_END_LINUX);
}

/* Does the connection have the mark that its packets are counted for? */
always_inline bool adopt_same_mark(const struct scratch *s, bool paired)
{
	const struct peek *opening = s->entry.state & FLOW_REPLY ? &s->ending.pair : &s->entry;

	if (!(s->adopting.trusted & TRUST_MARKED))
		return true;
	return (paired || opening == &s->entry) && opening->rare == s->adopting.mark;
}

/* Is the entry in s->entry an adopted one that still leaves as Linux says, and goes the way that its packets are counted for? */
always_inline bool adopt_same(const struct scratch *s, bool paired)
{
	const struct tuple *a = &s->entry.leaves, *b = &s->forward.leaves;
	const struct way *was = &s->entry.way, *is = &s->adopting.way;

	if (was->inside && (was->inside != is->inside || was->outside != is->outside))
		return false;
	return a->sport == b->sport && a->dport == b->dport && addr_equal(&a->src, &b->src) &&
	       addr_equal(&a->dst, &b->dst) && adopt_same_mark(s, paired);
}

/* Is it neither too large for its way, nor at its end? */
always_inline bool adopt_fits(const struct packet *p, const struct scratch *s)
{
	return packet_segment(p) <= s->entry.verdict.mtu && mangle_fits(p, s->entry.verdict.state);
}

/* Sends the packet as its flow says; over the MTU Linux fragments it, or says so. */
always_inline int adopt_send(struct packet *p, struct scratch *s, bool counted, int reason)
{
	if (must_hand_over(&s->egress))
		return hand_over(p, REASON_DROP_NO_EGRESS);
	if (!adopt_fits(p, s))
		return conclude(p, REASON_PUNT_ADOPTED);
	if (!counted)
		flow_refresh(&s->entry, packet_l3_length(p));
	return forward(p, &s->entry.verdict, &s->egress, reason);
}

/* Finds the other direction. */
always_inline bool adopt_pair(struct scratch *s)
{
	tuple_reverse(&s->entry.leaves, &s->ending.pair.key);
	return flow_peek(&s->ending.pair);
}

always_inline int adopt_known(struct packet *p, __u32 stamp, struct scratch *s)
{
	if (!(s->entry.state & FLOW_ADOPTED)) /* of a configuration that was in force before, if not just opened */
		return s->adopting.at_once ? stage(p, STAGE_KNOWN) : conclude(p, s->adopting.reason);
	/* by another device: Linux judges it; and is asked again when no packet has come by the first for a while */
	if (s->entry.way.inside && s->entry.way.inside != p->ifindex) {
		if (idle_since(now(), s->entry.seen) > ticks(ADOPT_AGAIN_MS))
			adopt_release(p, s);
		return conclude(p, REASON_PUNT_ADOPTED);
	}
	bool paired = adopt_pair(s);
	bool answers = paired && idle_since(now(), s->ending.pair.seen) <= ticks(ADOPT_AGAIN_MS);
	s->adopting.life = answers ? LIFE_ANSWERED : LIFE_ALONE;
	int reason = adopt_decide(p, s);
	/* it may be proved again with the next ruleset; Linux carries it until then */
	if (reason == REASON_PUNT_UNPROVEN)
		return adopt_refuse(p, stamp, reason);
	if (reason != CONTINUE || !adopt_same(s, paired)) {
		adopt_release(p, s);
		return reason == CONTINUE ? conclude(p, REASON_PUNT_ADOPTED) : adopt_refuse(p, stamp, reason);
	}
	route_verdict(&s->route, stamp, &s->entry.verdict, &s->egress);
	s->entry.asked = adopt_asked(p, s);
	s->entry.way = s->adopting.way;
	s->entry.verdict.state = (s->entry.verdict.state & ~FLOW_MANGLE) | s->adopting.mangle;
	flow_resolve(&s->entry);
	if (neighbour_due())
		return conclude(p, REASON_PUNT_NEIGHBOUR);
	return adopt_send(p, s, false, REASON_FORWARD_RESOLVED);
}

always_inline int adopt_new(struct packet *p, __u32 stamp, struct scratch *s)
{
	s->adopting.life = LIFE_LINUX;
	int reason = adopt_decide(p, s);
	if (reason != CONTINUE)
		return s->adopting.soon ? conclude(p, reason) : adopt_refuse(p, stamp, reason);
	route_verdict(&s->route, stamp, &s->entry.verdict, &s->egress);
	adopt_verdict(p, s);
	adopt_entries(p, s);
	bool counted = !must_hand_over(&s->egress) && adopt_fits(p, s);
	if (counted) {
		struct flow *f = s->adopting.reply ? &s->answer.flow : &s->forward.flow;
		f->carried = CARRIED_PACKET + packet_l3_length(p);
	}
	if (flow_open_adopted(&s->forward, &s->answer) != FLOW_CREATED)
		return adopt_refuse(p, stamp, s->adopting.reason);
	neighbour_due(); /* counted from now: those before this packet went by Linux */
	return adopt_send(p, s, true, REASON_FORWARD_ADOPTED);
}

/* What nothing of clearway's own claims. */
always_inline int enter_adopt(struct packet *p, struct scratch *s)
{
	__u32 stamp = generation(p); /* before all that it stands for is read */

	if (!cw_adoption || packet_bridged(p)) /* without, nobody gets here, and the rest cannot be loaded */
		return conclude(p, s->adopting.reason);
	s->entry.key = p->tuple;
	return flow_peek(&s->entry) ? adopt_known(p, stamp, s) : adopt_new(p, stamp, s);
}
