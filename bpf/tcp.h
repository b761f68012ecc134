/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP's part of conntrack: what each direction notes of its segments (enum tcp_sent). The state of the
 * connection follows from both notes (state.h), so that nothing has to be written in two places at once. */
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

/* An ordinary segment: remember what its sender is ready to receive. */
always_inline void tcp_track(const struct packet *p, struct flow *f)
{
	const struct tcphdr *tcp = packet_tcp(p);

	if (!tcp || !(p->tcp_flags & TCP_ACK))
		return;
	__u32 ack = bpf_ntohl(tcp->ack_seq);
	if (!(f->sent & SENT_ACK) || seq_after(ack, f->tcp_ack)) {
		f->sent |= SENT_ACK;
		f->tcp_ack = ack;
	}
	f->tcp_window = (__u32)bpf_ntohs(tcp->window) << (f->tcp_scale & 15);
}

/* Would the other side take this sequence number? It has said what it expects in its last segment; FIN and
 * RST may also repeat what it already has, up to a window back. */
always_inline bool tcp_in_window(const struct flow *other, __u32 seq)
{
	__u32 window = other->tcp_window ?: 1;

	return !seq_after(seq, other->tcp_ack + window) && !seq_after(other->tcp_ack, seq + window);
}

/* RFC 5961 3: a RST is believed when its sequence number is in the receiver's window; before the receiver has
 * said anything, when it acknowledges exactly the receiver's SYN (RFC 9293 3.10.7.3). */
always_inline bool tcp_rst_believed(const struct tcphdr *tcp, const struct flow *f, const struct flow *other)
{
	__u32 seq = bpf_ntohl(tcp->seq);

	if (other->sent & SENT_ACK)
		return !seq_after(other->tcp_ack, seq) && !seq_after(seq, other->tcp_ack + other->tcp_window);
	if (tcp->flags & TCP_ACK && other->sent & SENT_SYN)
		return bpf_ntohl(tcp->ack_seq) == other->tcp_opened;
	return f->sent & SENT_SYN && seq - f->tcp_opened + 1 <= 1; /* its own SYN's number, or the one after */
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
		options->scale = scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale;
		return 1;
	}
	options->at = at + length;
	return 0;
}

/* The window scale option of a SYN (RFC 7323), 0 when there is none. */
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
	f->tcp_opened = bpf_ntohl(tcp->seq) + 1;
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
always_inline void tcp_change(const struct packet *p, struct flow *f, const struct flow *other)
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
		if (!(f->sent & SENT_ACK) || f->tcp_opened == bpf_ntohl(tcp->seq) + 1)
			tcp_opened(p, f);
		return;
	}
	tcp_track(p, f);
	if (p->tcp_flags & TCP_FIN && (!(other->sent & SENT_ACK) || tcp_in_window(other, bpf_ntohl(tcp->seq))))
		f->sent |= SENT_FIN;
}

/* Is the connection over, so that a SYN may open a new one with the same tuple (RFC 9293 3.6.1)? */
always_inline bool tcp_is_over(const struct flow *f, const struct flow *other)
{
	enum tcp_state state = f->flags & FLOW_REPLY ? tcp_state(f->flags, other->sent, f->sent) :
						       tcp_state(f->flags, f->sent, other->sent);
	return state == TCP_TIME_WAIT || state == TCP_CLOSED;
}
