/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The state of a connection, from what both its directions have sent, and how long it may be idle in it. */
#pragma once

enum tcp_state {
	TCP_SYN_SENT,
	TCP_SYN_RECEIVED,
	TCP_ESTABLISHED,
	TCP_HALF_CLOSED,
	TCP_TIME_WAIT,
	TCP_CLOSED,
};

/* sent: enum tcp_sent of the direction that opened and of the one that answers */
always_inline enum tcp_state tcp_state(__u8 flags, __u8 sent, __u8 answered)
{
	if ((sent | answered) & SENT_RST)
		return TCP_CLOSED;
	if (sent & answered & SENT_FIN)
		return TCP_TIME_WAIT;
	if ((sent | answered) & SENT_FIN)
		return TCP_HALF_CLOSED;
	if (!answered)
		return TCP_SYN_SENT;
	if (flags & FLOW_PICKED_UP || sent & SENT_ACK)
		return TCP_ESTABLISHED;
	return TCP_SYN_RECEIVED;
}

always_inline enum timeout tcp_timeout(enum tcp_state state)
{
	return TIMEOUT_TCP_SYN_SENT + (enum timeout)state;
}

always_inline enum timeout flow_timeout(const struct tuple *t, const struct flow *f, const struct flow *reply)
{
	if (t->proto == IPPROTO_TCP)
		return tcp_timeout(tcp_state(f->flags, f->sent, reply->sent));
	if (t->proto == IPPROTO_UDP)
		return reply->packets ? TIMEOUT_UDP_STREAM : TIMEOUT_UDP;
	return TIMEOUT_ICMP;
}
