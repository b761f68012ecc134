/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP's part of conntrack: what each direction notes of its segments (enum tcp_sent). The state of the
 * connection follows from both notes (state.h), so that nothing has to be written in two places at once. */
#pragma once

#define TCP_OPTIONS_MAX 40
#define TCP_SCALE_MAX 14 /* RFC 7323 2.3; also taken for connections whose SYN was not seen */
#define TCP_SCALE_MASK 15
#define TCP_SCALE_OFFERED 0x80 /* the SYN carried the option; it counts when both did (RFC 7323 1.3) */
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_SCALE 3

/* Serial number arithmetic: is a after b? */
always_inline bool seq_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

/* How far this direction has got with this segment. */
always_inline __u32 tcp_end(const struct packet *p, const struct tcphdr *tcp)
{
	__u32 payload = packet_l4_length(p) - tcp->doff * 4;

	return bpf_ntohl(tcp->seq) + payload + !!(tcp->flags & TCP_SYN) + !!(tcp->flags & TCP_FIN);
}

/* An ordinary segment: remember what its sender has sent and is ready to receive. */
always_inline void tcp_track(const struct packet *p, struct flow *f)
{
	const struct tcphdr *tcp = packet_tcp(p);

	if (!tcp || !(p->tcp_flags & TCP_ACK))
		return;
	__u32 ack = bpf_ntohl(tcp->ack_seq), end = tcp_end(p, tcp);
	if (!(f->sent & (SENT_ACK | SENT_SYN)) || seq_after(end, f->tcp_next))
		f->tcp_next = end;
	if (!(f->sent & SENT_ACK) || seq_after(ack, f->tcp_ack)) {
		f->sent |= SENT_ACK;
		f->tcp_ack = ack;
	}
	f->tcp_window = (__u32)bpf_ntohs(tcp->window) << (f->tcp_scale & TCP_SCALE_MASK);
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
	__u32 expected = tcp_expected(f, other), window = other->tcp_window ?: 1;

	if (!(other->sent & SENT_ACK))
		return true;
	return !seq_after(seq, expected + window) && !seq_after(expected, seq + window);
}

/* RFC 5961 3: a RST is believed when its sequence number is in the receiver's window; before the receiver has
 * said anything, when it acknowledges exactly the receiver's SYN (RFC 9293 3.10.7.3). */
always_inline bool tcp_rst_believed(const struct tcphdr *tcp, const struct flow *f, const struct flow *other)
{
	__u32 seq = bpf_ntohl(tcp->seq), expected = tcp_expected(f, other);

	if (other->sent & SENT_ACK)
		return !seq_after(expected, seq) && !seq_after(seq, expected + other->tcp_window);
	if (tcp->flags & TCP_ACK && other->sent & SENT_SYN)
		return bpf_ntohl(tcp->ack_seq) == other->tcp_next;
	return f->sent & SENT_SYN && seq - f->tcp_next + 1 <= 1; /* its own SYN's number, or the one after */
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
		options->scale = TCP_SCALE_OFFERED | (scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale);
		return 1;
	}
	options->at = at + length;
	return 0;
}

/* The window scale option of a SYN (RFC 7323) with TCP_SCALE_OFFERED, 0 when there is none. */
always_inline __u8 tcp_scale(const struct packet *p, const struct tcphdr *tcp)
{
	struct scratch *s = scratch_get();

	if (!s || tcp->doff <= 5)
		return 0;
	__u32 length = ((tcp->doff - 6) * 4 & 0x3c) + 4; /* the mask is for the verifier */
	struct tcp_options *options = &s->options;
	if (packet_load(p, p->l4_offset + sizeof(*tcp), options->bytes, length))
		return 0;
	options->at = 0;
	options->end = length;
	options->scale = 0;
	bpf_loop(TCP_OPTIONS_MAX, tcp_option, NULL, 0);
	return options->scale;
}

/* A SYN, with or without ACK, in its own direction. */
always_inline void tcp_opened(const struct packet *p, struct flow *f)
{
	const struct tcphdr *tcp = packet_tcp(p);

	if (!tcp)
		return;
	f->tcp_scale = tcp_scale(p, tcp);
	f->tcp_next = tcp_end(p, tcp);
	f->sent |= SENT_SYN;
	if (p->tcp_flags & TCP_ACK) {
		f->sent |= SENT_ACK;
		f->tcp_ack = bpf_ntohl(tcp->ack_seq);
	}
	/* the window of a SYN is never scaled (RFC 7323, 2.2) */
	f->tcp_window = bpf_ntohs(tcp->window);
}

always_inline bool tcp_is_open(__u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* A segment that asks for a change of state. A SYN in the middle of a connection, and a FIN or RST that the
 * receiver would not take, change nothing and go on: the receiver answers them (RFC 5961). */
always_inline void tcp_change(const struct packet *p, struct flow *f, struct flow *other)
{
	const struct tcphdr *tcp = packet_tcp(p);

	if (!tcp)
		return;
	if (p->tcp_flags & TCP_RST) {
		if (tcp_rst_believed(tcp, f, other))
			f->sent |= SENT_RST;
		return;
	}
	if (p->tcp_flags & TCP_SYN) {
		if (f->sent & SENT_ACK && f->tcp_next != tcp_end(p, tcp))
			return;
		tcp_opened(p, f);
		if (p->tcp_flags & TCP_ACK && !(f->tcp_scale & other->tcp_scale & TCP_SCALE_OFFERED))
			f->tcp_scale = other->tcp_scale = 0;
		return;
	}
	if (p->tcp_flags & TCP_FIN && tcp_fin_believed(bpf_ntohl(tcp->seq), f, other))
		f->sent |= SENT_FIN;
	tcp_track(p, f);
}

/* Is the connection over, so that a SYN may open a new one with the same tuple (RFC 9293 3.6.1)? */
always_inline bool tcp_is_over(const struct flow *f, const struct flow *other)
{
	enum tcp_state state = f->flags & FLOW_REPLY ? tcp_state(f->flags, other->sent, f->sent) :
						       tcp_state(f->flags, f->sent, other->sent);
	return state == TCP_TIME_WAIT || state == TCP_CLOSED;
}
