/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The state of a connection, as either of its entries tells it, and how long it may be idle in it. */
#pragma once

enum tcp_state {
	TCP_SYN_SENT,
	TCP_SYN_RECEIVED,
	TCP_ESTABLISHED,
	TCP_HALF_CLOSED,
	TCP_TIME_WAIT,
	TCP_CLOSED,
};

#define SENT_ANY 0xf /* FLOW_SENT_*, shifted down */
#define SENT_BIT(FLAG) ((FLAG) >> FLOW_SENT_SHIFT)

/* What the direction that opened has sent, as FLOW_SENT_* >> FLOW_SENT_SHIFT; and the one that answers. */
always_inline __u32 state_opener(__u32 state)
{
	return state >> (state & FLOW_REPLY ? FLOW_HEARD_SHIFT : FLOW_SENT_SHIFT) & SENT_ANY;
}

always_inline __u32 state_answerer(__u32 state)
{
	return state >> (state & FLOW_REPLY ? FLOW_SENT_SHIFT : FLOW_HEARD_SHIFT) & SENT_ANY;
}

always_inline enum tcp_state tcp_state(__u32 state)
{
	__u32 sent = state_opener(state), answered = state_answerer(state);

	if ((sent | answered) & SENT_BIT(FLOW_SENT_RST))
		return TCP_CLOSED;
	if (sent & answered & SENT_BIT(FLOW_SENT_FIN))
		return TCP_TIME_WAIT;
	if ((sent | answered) & SENT_BIT(FLOW_SENT_FIN))
		return TCP_HALF_CLOSED;
	if (!answered)
		return TCP_SYN_SENT;
	if (state & FLOW_PICKED_UP || sent & SENT_BIT(FLOW_SENT_ACK))
		return TCP_ESTABLISHED;
	return TCP_SYN_RECEIVED;
}

/* Over, so that a SYN may open a new connection with the same tuple (RFC 9293 3.6.1). */
always_inline bool tcp_is_over(__u32 state)
{
	enum tcp_state tcp = tcp_state(state);

	return tcp == TCP_TIME_WAIT || tcp == TCP_CLOSED;
}

always_inline enum timeout flow_timeout(__u32 state)
{
	__u8 proto = state;

	if (proto == IPPROTO_TCP)
		return TIMEOUT_TCP_SYN_SENT + (enum timeout)tcp_state(state);
	if (proto == IPPROTO_UDP)
		return state_answerer(state) ? TIMEOUT_UDP_STREAM : TIMEOUT_UDP;
	return TIMEOUT_ICMP;
}

#define ADOPTED_IDLE_MS 60000 /* Linux keeps the connection, for as long as it likes */

/* Jiffies that a connection in this state may be idle. */
always_inline __u32 flow_patience(const struct config *config, __u32 state)
{
	if (state & FLOW_ADOPTED)
		return ticks(ADOPTED_IDLE_MS);
	return ticks(config->timeout_ms[flow_timeout(state) % TIMEOUT_COUNT]);
}

/* Jiffies since then; a stamp made after `now` was read is not old. */
always_inline __u32 idle_since(__u32 now, __u32 seen)
{
	__s32 passed = now - seen;

	return passed < 0 ? 0 : passed;
}
