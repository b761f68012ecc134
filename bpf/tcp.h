/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP's part of conntrack: what each direction notes of its segments. */
#pragma once

#define TCP_OPTIONS_MAX 40
#define TCP_SCALE_MAX 14 /* RFC 7323 2.3; also taken for connections whose SYN was not seen */
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_SCALE 3

/* Serial number arithmetic: is a after b? */
always_inline bool seq_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

/* All but the scale, for which options must be read. False: no TCP header. */
always_inline bool tcp_read(const struct packet *p, struct segment *seg)
{
	const struct tcphdr *tcp = packet_tcp(p);

	if (!tcp)
		return false;
	__u32 payload = packet_l4_length(p) - tcp->doff * 4;
	seg->flags = tcp->flags;
	seg->seq = bpf_ntohl(tcp->seq);
	seg->ack = bpf_ntohl(tcp->ack_seq);
	seg->end = seg->seq + payload + !!(tcp->flags & TCP_SYN) + !!(tcp->flags & TCP_FIN);
	seg->window = bpf_ntohs(tcp->window);
	seg->pad = 0;
	seg->scale = 0;
	return true;
}

/* An ordinary segment: remember what its sender has sent and is ready to receive. */
always_inline void tcp_track(const struct segment *seg, struct flow *f)
{
	if (!(seg->flags & TCP_ACK))
		return;
	if (!(f->state & (FLOW_SENT_ACK | FLOW_SENT_SYN)) || seq_after(seg->end, f->tcp_next))
		f->tcp_next = seg->end;
	if (!(f->state & FLOW_SENT_ACK) || seq_after(seg->ack, f->tcp_ack))
		f->tcp_ack = seg->ack;
	f->tcp_window = seg->window;
}

/* Bytes that the direction's sender is ready to receive. */
always_inline __u32 tcp_window(const struct flow *f)
{
	return (__u32)f->tcp_window << ((f->state & FLOW_SCALE) >> FLOW_SCALE_SHIFT);
}

/* Both entries learn what this direction has sent (FLOW_SENT_*). */
always_inline void flow_sent(struct flow *f, struct flow *other, __u32 sent)
{
	if ((f->state & sent) == sent)
		return;
	__sync_fetch_and_or(&f->state, sent);
	__sync_fetch_and_or(&other->state, sent << (FLOW_HEARD_SHIFT - FLOW_SENT_SHIFT));
}

/* What the other side expects next, by its last acknowledgement. One that acknowledges more than was ever sent to
 * it is a forgery that nothing could check when it came; what was sent counts then. */
always_inline __u32 tcp_expected(const struct flow *f, const struct flow *other)
{
	return seq_after(other->tcp_ack, f->tcp_next) ? f->tcp_next : other->tcp_ack;
}

/* Would the other side take a FIN with this number? It may repeat what it already has, up to a window back. */
always_inline bool tcp_fin_believed(__u32 seq, const struct flow *f, const struct flow *other)
{
	__u32 expected = tcp_expected(f, other), window = tcp_window(other) ?: 1;

	if (!(other->state & FLOW_SENT_ACK))
		return true;
	return !seq_after(seq, expected + window) && !seq_after(expected, seq + window);
}

/* RFC 5961 3: a RST is believed when its sequence number is in the receiver's window; before the receiver has
 * said anything, when it acknowledges exactly the receiver's SYN (RFC 9293 3.10.7.3). */
always_inline bool tcp_rst_believed(const struct segment *seg, const struct flow *f, const struct flow *other)
{
	__u32 seq = seg->seq, expected = tcp_expected(f, other);

	if (other->state & FLOW_SENT_ACK)
		return !seq_after(expected, seq) && !seq_after(seq, expected + tcp_window(other));
	if (seg->flags & TCP_ACK && other->state & FLOW_SENT_SYN)
		return seg->ack == other->tcp_next;
	return f->state & FLOW_SENT_SYN && seq - f->tcp_next + 1 <= 1; /* its own SYN's number, or the one after */
}

/* One option (RFC 9293 3.1); 1 ends the walk. */
static long tcp_option(__u32 index, void *unused)
{
	struct scratch *s = scratch_get();

	if (!s)
		return 1;
	struct tcp_options *options = &s->options;
	__u32 at = options->at;
	if (at >= options->end)
		return 1;
	__u8 kind = options->bytes[at & 63], length = options->bytes[(at + 1) & 63];
	if (kind == TCP_OPTION_END)
		return 1;
	if (kind == TCP_OPTION_NOP) {
		options->at = at + 1;
		return 0;
	}
	if (length < 2 || at + length > options->end)
		return 1;
	if (kind == TCP_OPTION_SCALE && length == 3) {
		__u8 scale = options->bytes[(at + 2) & 63];
		options->scale = FLOW_SCALE_OFFERED | (scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale)
							      << FLOW_SCALE_SHIFT;
		return 1;
	}
	options->at = at + length;
	return 0;
}

/* The window scale option of a SYN (RFC 7323) as FLOW_SCALE and FLOW_SCALE_OFFERED, 0 when there is none. */
always_inline __u32 tcp_scale(const struct packet *p, struct tcp_options *options)
{
	const struct tcphdr *tcp = packet_tcp(p);

	if (!tcp || tcp->doff <= 5)
		return 0;
	__u32 length = ((tcp->doff - 6) * 4 & 0x3c) + 4; /* the mask is for the verifier */
	if (packet_load(p, p->l4_offset + sizeof(*tcp), options->bytes, length))
		return 0;
	options->at = 0;
	options->end = length;
	options->scale = 0;
	bpf_loop(TCP_OPTIONS_MAX, tcp_option, NULL, 0);
	return options->scale;
}

/* A SYN, with or without ACK, in its own direction. The window of a SYN is never scaled (RFC 7323 2.2): it is noted so that
 * scaling makes it no smaller than it is. */
always_inline void tcp_opened(const struct segment *seg, struct flow *f)
{
	__u32 shift = seg->scale >> FLOW_SCALE_SHIFT & 0xf;

	f->tcp_next = seg->end;
	f->tcp_window = ((__u32)seg->window + (1 << shift) - 1) >> shift;
	if (seg->flags & TCP_ACK)
		f->tcp_ack = seg->ack;
}

always_inline bool tcp_is_open(__u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* A SYN of a connection that is known: the answering one, or either repeated. */
always_inline void tcp_syn(const struct segment *seg, struct flow *f, struct flow *other)
{
	__u32 scale = seg->scale;

	if (f->state & FLOW_SENT_ACK && f->tcp_next != seg->end)
		return;
	tcp_opened(seg, f);
	if (seg->flags & TCP_ACK && !(scale & other->state & FLOW_SCALE_OFFERED)) {
		/* one of them does not scale: neither does */
		__sync_fetch_and_and(&other->state, ~(__u32)(FLOW_SCALE | FLOW_SCALE_OFFERED));
		f->tcp_window = seg->window;
		scale = 0;
	}
	__sync_fetch_and_and(&f->state, ~(__u32)(FLOW_SCALE | FLOW_SCALE_OFFERED));
	__sync_fetch_and_or(&f->state, scale);
	flow_sent(f, other, seg->flags & TCP_ACK ? FLOW_SENT_SYN | FLOW_SENT_ACK : FLOW_SENT_SYN);
}

/* A segment that asks for a change of state. A SYN in the middle of a connection, and a FIN or RST that the
 * receiver would not take, change nothing and go on: the receiver answers them (RFC 5961). */
always_inline void tcp_change(const struct segment *seg, struct flow *f, struct flow *other)
{
	if (seg->flags & TCP_RST) {
		if (tcp_rst_believed(seg, f, other))
			flow_sent(f, other, FLOW_SENT_RST);
		return;
	}
	if (seg->flags & TCP_SYN) {
		tcp_syn(seg, f, other);
		return;
	}
	if (seg->flags & TCP_FIN && tcp_fin_believed(seg->seq, f, other))
		flow_sent(f, other, FLOW_SENT_FIN);
	tcp_track(seg, f);
	if (seg->flags & TCP_ACK)
		flow_sent(f, other, FLOW_SENT_ACK);
}
