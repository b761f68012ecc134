/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The programs behind the entry, reached by tail call, so that the hit path stays small. What parse.h reads for them
 * goes with the packet, in this CPU's scratch: as plain numbers, so that the verifier proves each program for
 * itself and not once for each way through the parser. */
#pragma once

enum stage {
	STAGE_AGAIN,  /* what is no hit, from the start: the entry keeps nothing for it */
	STAGE_KNOWN,  /* changes of state, stale flows, fragments; sends on what belongs to no flow */
	STAGE_OPEN,   /* first packets */
	STAGE_ADOPT,  /* what is Linux' */
	STAGE_ICMP,   /* errors about flows */
	STAGE_ANSWER, /* ICMP errors and resets of our own; packets over MTU */
	STAGE_REFUSE, /* what the firewall does not accept */
	STAGE_STRAY,  /* what only Linux can carry, from the start */
	STAGE_ODD,    /* the same, judged */
#ifdef HOOK_TC
	STAGE_SENT, /* of what this machine sends: first packets, changes of state */
#endif
	STAGE_COUNT,
};

/* Filled by the loader with the programs of the same object; not shared, not pinned by name. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, STAGE_COUNT);
	__type(key, enum stage);
	__type(value, __u32);
} stages SEC(".maps");

#define L3_OFFSET_MASK 0x3f /* 14 + two tags */
#define L4_OFFSET_MASK L4_OFFSET_MAX

always_inline struct parsed *packet_parsed(struct packet *p)
{
	return (void *)p + offsetof(struct packet, ifindex);
}

always_inline int stage(struct packet *p, enum stage stage)
{
	struct scratch *s = scratch_get();

	if (s) {
		s->parsed = *packet_parsed(p);
		bpf_tail_call(p->ctx, &stages, stage);
	}
	return conclude(p, REASON_DROP_STAGE_MISSING);
}

/* The other end of stage(): from numbers to pointers. */
always_inline bool packet_restore(struct packet *p, const struct scratch *s)
{
	*packet_parsed(p) = s->parsed;
	p->l3_offset &= L3_OFFSET_MASK;
	p->l4_offset &= L4_OFFSET_MASK;
	packet_reload(p);
	p->l3 = p->data + p->l3_offset;
	if (p->l3 + (p->tuple.family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) > p->end)
		return false;
	if (p->fragment == FRAGMENT_LATER || !has_ports(&p->tuple))
		return true;
	p->l4 = p->data + p->l4_offset;
	return p->l4 + sizeof(struct udphdr) <= p->end;
}
