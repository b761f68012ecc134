/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The firewall: what becomes of the first packet of a connection, by the first rule that it meets, and of those that
 * follow when the rules have changed meanwhile. Rules see addresses as the client has sent them, or, those that ask for it,
 * as they are after translation; of both kinds the one that comes first decides.
 *
 *   firewall_ask      what is to be decided
 *   firewall_judge    the decision: logged, and a refusal counted
 *   firewall_count    an acceptance counted, by who acts on it
 */
#pragma once

#define FIELDS_IFINDEX_MAX ((1u << 26) - 1) /* stands for itself and all above */

always_inline __u64 fields_ifindex(__u32 ifindex)
{
	return ifindex < FIELDS_IFINDEX_MAX ? ifindex : FIELDS_IFINDEX_MAX;
}

always_inline void fields_addresses(struct fields *f, const struct tuple *t)
{
	f->words[0] = bpf_be64_to_cpu(t->src.quads[0]);
	f->words[1] = bpf_be64_to_cpu(t->src.quads[1]);
	f->words[2] = bpf_be64_to_cpu(t->dst.quads[0]);
	f->words[3] = bpf_be64_to_cpu(t->dst.quads[1]);
	if (t->family == FAMILY_IPV4) {
		f->words[0] >>= 32;
		f->words[2] >>= 32;
	}
}

always_inline void fields_write(struct fields *f, const struct tuple *t, const struct asked *a)
{
	__u64 sport = bpf_ntohs(t->sport), dport = bpf_ntohs(t->dport);

	fields_addresses(f, t);
	if (is_icmp(t)) {
		sport = 0;
		dport = a->icmp_type;
	}
	f->words[4] = sport << 48 | dport << 32 | (__u64)t->proto << 24 | (__u64)(a->tos >> 2) << 16 |
		      (__u64)a->tcp_flags << 8 | (__u64)a->mark << 1 | a->local;
	f->words[5] = fields_ifindex(a->ifindex_in) << 38 | fields_ifindex(a->ifindex_out) << 12 | a->vlan;
	f->words[6] = 0;
}

/* About a connection, as far as j->asked does not tell. */
always_inline void firewall_ask(struct judging *j, const struct tuple *arrives, const struct tuple *leaves,
				const struct config *config)
{
	j->epoch = config->epoch;
	j->family = arrives->family;
	fields_write(&j->before, arrives, &j->asked);
	if (config->firewall & FIREWALL_AFTER)
		fields_write(&j->after, leaves, &j->asked);
}

/* Places of classifier_v3: by epoch, by which addresses the rules ask for, by family. */
always_inline __u32 firewall_place(const struct judging *j, __u32 after)
{
	return (j->epoch & 1) << 2 | after << 1 | (j->family == FAMILY_IPV6);
}

/* What the first rule does that the packet meets; false: the tables are not there. */
always_inline bool firewall_rule(struct judging *j)
{
	const struct config *config = config_of(j->epoch);
	struct classify *c = classify_here();

	if (!config || !c)
		return false;
	__u32 first = CLASSIFY_NONE;
	__u32 kinds = config->firewall & FIREWALL_AFTER ? 2 : 1;
	for (__u32 after = 0; after < kinds && after < 2; after++) {
		c->fields = after ? j->after : j->before;
		__u32 found = classify(firewall_place(j, after));
		if (found >= first)
			continue;
		first = found;
		j->rule = c->told;
	}
	if (first == CLASSIFY_NONE)
		j->rule = config->otherwise;
	j->row = bpf_get_smp_processor_id() * config->counters + (j->rule & RULE_COUNTER);
	return true;
}

/* The line of a counter is seldom at hand where there are many rules. So acceptances are counted just before the
 * lines of a new flow are asked for, and all of them are waited for at once (docs/decisions/0006). */
never_inline void firewall_count(const struct scratch *s)
{
	__u32 row = s->judging.row, bytes = s->parsed.length;
	struct judged *judged = bpf_map_lookup_elem(&judged_v1, &row);

	if (!judged)
		return;
	judged->packets++;
	judged->bytes += bytes;
	judged->last = bpf_jiffies64();
}

never_inline void firewall_log(context *ctx, const struct scratch *s)
{
	const struct parsed *parsed = &s->parsed;

	if (!(s->judging.rule & RULE_LOG) || !flow_tables()->events)
		return;
	struct firewall_event *event = bpf_ringbuf_reserve(&events_v1, sizeof(*event), 0);
	if (!event) {
		__u32 zero = 0;
		struct opened *unheard = bpf_map_lookup_elem(&unheard_v1, &zero);
		if (unheard)
			unheard->connections++;
		return;
	}
	struct packet p = {.ctx = ctx};
	__u32 size = parsed->length - parsed->l3_offset;
	__builtin_memset(event, 0, sizeof(*event));
	event->at = bpf_jiffies64();
	__u32 counter = s->judging.rule & RULE_COUNTER;
	const __u64 *identity = bpf_map_lookup_elem(&named_v1, &counter);
	event->identity = identity ? *identity : 0;
	event->action = s->judging.action;
	event->ifindex_in = parsed->ifindex;
	event->ifindex_out = route_found(&s->route) ? s->route.fib.ifindex : 0;
	event->length = parsed->length;
	event->vlan = parsed->vlan_outer;
	event->family = parsed->tuple.family;
	event->proto = parsed->tuple.proto;
	event->known = s->judging.known;
	event->tcp_flags = parsed->tcp_flags;
	event->tuple = parsed->tuple;
	if (size > EVENT_HEAD)
		size = EVENT_HEAD;
	size = ((size - 1) & (EVENT_HEAD - 1)) + 1; /* for the verifier; it is not 0 */
	if (!packet_load(&p, parsed->l3_offset, event->head, size))
		event->head_length = size;
	bpf_ringbuf_submit(event, 0);
}

/* Decides about what firewall_ask() has put into the scratch; enum firewall_action, also in judging.action. The packet of a
 * connection that goes on as it did is nothing to be told. */
__noinline int firewall_judge(context *ctx)
{
	struct scratch *s = scratch_get();

	/* The verifier wants it, also where the compiler finds that nothing is logged (bench/table_hash.h). */
	keep_register(ctx);
	if (!s)
		return FIREWALL_DROP;
	s->judging.action = FIREWALL_DROP;
	if (!firewall_rule(&s->judging))
		return FIREWALL_DROP;
	s->judging.action = s->judging.rule >> RULE_ACTION_SHIFT & 0xf;
	bool accepted = s->judging.action == FIREWALL_ACCEPT;
	if (!accepted)
		firewall_count(s);
	if (!(accepted && s->judging.known))
		firewall_log(ctx, s);
	return s->judging.action;
}

/* Neighbour discovery and multicast groups of IPv6 (RFC 4861, RFC 2710, RFC 3810): without them there is no IPv6 (RFC 4890
 * 4.4.1). They are of the link alone: what is to be forwarded is none of them. */
always_inline bool firewall_spares(const struct packet *p)
{
	return p->tuple.family == FAMILY_IPV6 && p->tuple.proto == IPPROTO_ICMPV6 && !p->fragment &&
	       ((p->icmp_type >= ICMP6_MLD_QUERY && p->icmp_type <= ICMP6_REDIRECT) ||
		p->icmp_type == ICMP6_MLD2_REPORT);
}
