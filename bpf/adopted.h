/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is asked of every packet that may be of an adopted connection (adopt.h), on the way to its entry or away from it.
 *
 *   adopt_is_plain    may the fast path carry such a packet at all?
 *   adopt_asks        must Linux be asked again?
 *   adopt_refused     asked about a moment ago, and left to Linux
 *   adopt_refuse      leave it to Linux, and what follows in the next moment
 */
#pragma once

#define ADOPT_AGAIN_MS 2000 /* Linux tells when a connection is deleted; that long it is believed without */
#define ADOPT_UNTOLD_MS 100 /* the same, where it does not tell: the connection is older than our listening */
#define ADOPT_REFUSED_MS 20
#define ADOPT_TURNS 8
#define ADOPT_SHARED_MS 1000 /* who has not come by for longer takes the row from nobody */
#define ADOPT_DOUBLED_MAX 4  /* times: who is refused again and again is asked about every 320 ms */

/* Of an established TCP connection, and changing nothing about it (RFC 9293 3.10.7.4: every segment has an ACK). */
always_inline bool adopt_is_plain_tcp(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_ACK;
}

/* Rules may ask for extension headers, and nothing is proved of such packets. */
always_inline bool adopt_has_extension(const struct packet *p)
{
	return p->tuple.family == FAMILY_IPV6 && p->l4_offset - p->l3_offset != sizeof(struct ipv6hdr);
}

/* Linux' own to judge: what changes a connection, and what cannot be forwarded as it is. */
always_inline bool adopt_is_plain(const struct packet *p)
{
	if (p->fragment || p->ttl <= 1 || adopt_has_extension(p) || (cw_kernel_context && packet_decrypted(p)))
		return false;
	return p->tuple.proto == IPPROTO_TCP ? adopt_is_plain_tcp(p->tcp_flags) : p->tuple.proto == IPPROTO_UDP;
}

/* What an entry notes of the packet that Linux was asked about: when (jiffies << ADOPT_CLASS_BITS) and its class of service, which
 * routes and rules of routing may ask for. `ago`: jiffies. */
#define ADOPT_CLASS_BITS 6
#define ADOPT_CLASS_MASK ((1 << ADOPT_CLASS_BITS) - 1)

always_inline __u32 adopt_asked_of(const struct packet *p, __u32 ago)
{
	return (now() - ago) << ADOPT_CLASS_BITS | p->tos >> 2;
}

/* Was Linux asked long ago? A time of fewer bits seems to be near again after days, but not when packets go by. */
always_inline bool adopt_was_long_ago(const struct flow *f)
{
	__u32 at = f->tcp_next >> ADOPT_CLASS_BITS, is = now(), long_ago = ticks(ADOPT_AGAIN_MS);

	return ((is - at) & ~0u >> ADOPT_CLASS_BITS) > long_ago || is - f->seen > long_ago;
}

/* Does it come by another way than those before? */
always_inline bool adopt_strays(const struct packet *p, const struct flow *f)
{
	return flow_way(f).inside != p->ifindex || (f->tcp_next & ADOPT_CLASS_MASK) != p->tos >> 2;
}

/* May the entry not carry this packet as it is? Linux is to be asked again, or to judge it; or it belongs to a bridge, behind which
 * the same connection may be carried. */
always_inline bool adopt_asks(const struct packet *p, const struct net_device *device, const struct flow *f)
{
	if (device && (device_is_bridged(device) || packet_decrypted(p)))
		return true;
	return adopt_was_long_ago(f) || adopt_strays(p, f) || adopt_has_extension(p) ||
	       (p->tuple.proto == IPPROTO_TCP && !adopt_is_plain_tcp(p->tcp_flags));
}

/* Is there a configuration that could claim a packet? */
always_inline bool adopt_may_be_claimed(void)
{
	const struct config *config = config_of(epoch_now());

	return !config || config_claims(config);
}

/* Is it Linux' whatever the other stages say? Then they need not be asked. */
always_inline bool adopt_at_once(const struct packet *p)
{
	struct scratch *s = scratch_get();

	if (!cw_adoption || !s || adopt_may_be_claimed() || !adopt_is_plain(p))
		return false;
	s->adopting.reason = REASON_PUNT_NOT_OURS;
	s->adopting.at_once = true;
	return true;
}

/* ---- what is refused: so that traffic that stays in Linux is not asked about with every packet ---- */

/* The row of packets whose tuple has this hash (flow_hit, flow_hash); its upper half is to tell them from others. */
always_inline __u64 *adopt_row(__u64 hash, __u32 stamp, __u32 *tag)
{
	__u64 mixed = mix64_again(hash + stamp);
	__u32 row = mixed >> 32 & (REFUSED_ROWS - 1);

	*tag = mixed;
	return bpf_map_lookup_elem(&refused_v1, &row);
}

/* What a row says. In 64 bits, so that it is read and written at once: tag << 32 | jiffies << 11 | doubled << 8 | reason. */
struct refused {
	__u32 tag;
	__u32 passed; /* jiffies since it was written */
	__u8 doubled; /* how often the time that it holds for */
	__u8 reason;
};

#define REFUSED_TIME_MASK 0x1fffff
#define REFUSED_TIME_SHIFT 11
#define REFUSED_DOUBLED_MASK 7
#define SIGHTED 0xff /* stands for a reason: there was one such packet, and nobody was asked about it */

always_inline struct refused refused_read(const __u64 *row)
{
	__u64 found = READ_ONCE(*row);
	struct refused refused = {.tag = found >> 32,
				  .passed = (now() - (__u32)(found >> REFUSED_TIME_SHIFT)) & REFUSED_TIME_MASK,
				  .doubled = found >> 8 & REFUSED_DOUBLED_MASK,
				  .reason = found};

	return refused;
}

always_inline void refused_write(__u64 *row, __u32 tag, __u32 doubled, int reason)
{
	*(volatile __u64 *)row =
		(__u64)tag << 32 | (now() & REFUSED_TIME_MASK) << REFUSED_TIME_SHIFT | doubled << 8 | reason;
}

/* Connections that share a row take it from each other, for ever if both go on. So one packet in ADOPT_TURNS is asked about all the
 * same: of more connections than there are rows, each comes to its turn within seconds. */
always_inline bool adopt_turn(const struct refused *was)
{
	return was->tag && was->passed < ticks(ADOPT_SHARED_MS) && !(bpf_get_prandom_u32() & (ADOPT_TURNS - 1));
}

/* The reason under which the packet is left to Linux without asking: because one like it was a moment ago; or because it is
 * the first of its kind, and may well stay the only one. CONTINUE: it is to be asked about. known: it has an entry. */
always_inline int adopt_refused(const struct packet *p, const struct net_device *device, __u64 hash, __u32 stamp,
				bool known)
{
	__u32 tag;

	if (!cw_adoption || !adopt_is_plain(p))
		return CONTINUE;
	if (device && device_is_bridged(device)) /* no row: it would be the bridge's as well */
		return adopt_may_be_claimed() ? CONTINUE : REASON_PUNT_NOT_OURS;
	__u64 *row = adopt_row(hash, stamp, &tag);
	if (!row)
		return CONTINUE;
	struct refused was = refused_read(row);
	if (was.tag == tag)
		return was.reason == SIGHTED || was.passed > ticks(ADOPT_REFUSED_MS) << was.doubled ? CONTINUE :
												      was.reason;
	if (known || adopt_may_be_claimed() || adopt_turn(&was))
		return CONTINUE;
	refused_write(row, tag, 0, SIGHTED);
	return REASON_PUNT_NOT_OURS;
}

/* Left to Linux, and so are those that follow in the next moment, which is twice as long each time. What is not proved yet may be
 * in a moment. */
always_inline int adopt_refuse(struct packet *p, __u32 stamp, int reason)
{
	__u32 tag, doubled = 0;
	__u64 *row = adopt_row(flow_hash(&p->tuple), stamp, &tag);

	if (row) {
		struct refused was = refused_read(row);
		if (was.tag == tag && was.reason == reason && reason != REASON_PUNT_UNPROVEN)
			doubled = was.doubled < ADOPT_DOUBLED_MAX ? was.doubled + 1 : ADOPT_DOUBLED_MAX;
		refused_write(row, tag, doubled, reason);
	}
	return conclude(p, reason);
}
