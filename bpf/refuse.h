/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the firewall does not accept, and what its sender is told: TCP gets a reset, UDP "port unreachable" (RFC 1122
 * 3.2.2.1), everything else "administratively prohibited" (RFC 1812 5.2.7.1, RFC 4443 3.1). */
#pragma once

#define ICMP_PORT_UNREACHABLE 3 /* codes of ICMP_UNREACHABLE */
#define ICMP_PROHIBITED 13
#define ICMP6_PROHIBITED 1 /* codes of ICMP6_UNREACHABLE */
#define ICMP6_PORT_UNREACHABLE 4

/* To a group of hosts, or said in a link-layer broadcast? */
always_inline bool is_to_many(const struct packet *p)
{
	const struct ethhdr *eth = p->data;
	__u8 top = p->tuple.dst.bytes[0];

	if ((void *)(eth + 1) > p->end || eth->h_dest[0] & 1)
		return true;
	return p->tuple.family == FAMILY_IPV4 ? top >= 224 || top == 127 : top == 0xff;
}

/* Some get no answer, lest answers answer answers (RFC 1122 3.2.2). */
always_inline bool refuse_answers(const struct packet *p)
{
	if (p->fragment == FRAGMENT_LATER || is_to_many(p) || opening_from_nobody(&p->tuple))
		return false;
	return !is_icmp(&p->tuple) || p->icmp_type == icmp_request(p->tuple.family);
}

always_inline int refuse_unreachable(struct packet *p, const struct scratch *s)
{
	bool port = p->tuple.proto == IPPROTO_UDP;
	bool local = s->judging.before.words[4] & 1 && s->route.result == BPF_FIB_LKUP_RET_NOT_FWDED;
	struct answer a = {.type = ICMP_UNREACHABLE, .from_destination = local};

	a.code = port ? ICMP_PORT_UNREACHABLE : ICMP_PROHIBITED;
	if (p->tuple.family == FAMILY_IPV6) {
		a.type = ICMP6_UNREACHABLE;
		a.code = port ? ICMP6_PORT_UNREACHABLE : ICMP6_PROHIBITED;
	}
	return answer_icmp(p, &a, REASON_ANSWER_REJECTED);
}

always_inline int enter_refuse(struct packet *p, struct scratch *s)
{
	fragment_forget(p);
	if (s->judging.action != FIREWALL_REJECT || !refuse_answers(p))
		return conclude(p, REASON_DROP_FIREWALL);
	/* a reset is made from the headers of its cause, which here may have options or extensions */
	__u32 header = p->tuple.family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	bool plain = p->l4_offset - p->l3_offset == header;
	if (p->tuple.proto == IPPROTO_TCP && p->fragment == FRAGMENT_NONE && plain)
		return answer_reset(p, REASON_ANSWER_REJECTED, REASON_DROP_FIREWALL);
	return refuse_unreachable(p, s);
}
