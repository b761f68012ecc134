/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The answer to a TCP segment without a flow, where the mid-stream policy says so: a reset that the sender will
 * take (RFC 9293 3.10.7.1), made from the segment itself. */
#pragma once

struct ipv4_pseudo {
	__be32 saddr;
	__be32 daddr;
	__u8 zero;
	__u8 proto;
	__be16 length;
};

always_inline __u16 answer_pseudo(const struct packet *p)
{
	if (p->tuple.family == FAMILY_IPV4) {
		struct ipv4_pseudo pseudo = {.saddr = p->tuple.dst.v4,
					     .daddr = p->tuple.src.v4,
					     .proto = IPPROTO_TCP,
					     .length = bpf_htons(sizeof(struct tcphdr))};
		return fold(bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0));
	}
	struct ipv6_pseudo pseudo = {.saddr = p->tuple.dst,
				     .daddr = p->tuple.src,
				     .length = bpf_htonl(sizeof(struct tcphdr)),
				     .next = IPPROTO_TCP};
	return fold(bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0));
}

always_inline bool answer_reset_tcp(struct packet *p, const struct tcphdr *was, __u32 payload, bool partial)
{
	struct tcphdr *tcp = packet_tcp(p);

	if (!tcp)
		return false;
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = was->dest;
	tcp->dest = was->source;
	tcp->doff = 5;
	if (was->flags & TCP_ACK) {
		tcp->seq = was->ack_seq;
		tcp->flags = TCP_RST;
	} else {
		__u32 numbers = payload + !!(was->flags & TCP_SYN) + !!(was->flags & TCP_FIN);
		tcp->ack_seq = bpf_htonl(bpf_ntohl(was->seq) + numbers);
		tcp->flags = TCP_RST | TCP_ACK;
	}
	__u16 pseudo = answer_pseudo(p);
	__u16 sum = fold((__u32)pseudo + fold(bpf_csum_diff(0, 0, (void *)tcp, sizeof(*tcp), 0)));
	tcp->check = partial ? pseudo : (__u16)~sum;
	return true;
}

always_inline bool answer_reset_ip(struct packet *p)
{
	__u32 header = p->l4_offset - p->l3_offset;

	if (p->tuple.family == FAMILY_IPV4) {
		struct iphdr *ip = answer_l3(p);
		if ((void *)(ip + 1) > p->end)
			return false;
		ip->saddr = p->tuple.dst.v4;
		ip->daddr = p->tuple.src.v4;
		ip->tot_len = bpf_htons(header + sizeof(struct tcphdr));
		ip->ttl = ANSWER_TTL;
		ip->check = 0;
		ip->check = ~fold(bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
		return true;
	}
	struct ipv6hdr *ip = answer_l3(p);
	if ((void *)(ip + 1) > p->end)
		return false;
	__builtin_memcpy(&ip->saddr, &p->tuple.dst, sizeof(p->tuple.dst));
	__builtin_memcpy(&ip->daddr, &p->tuple.src, sizeof(p->tuple.src));
	ip->payload_len = bpf_htons(header - sizeof(*ip) + sizeof(struct tcphdr));
	ip->hop_limit = ANSWER_TTL;
	return true;
}

/* unfit: why a packet is dropped that gets no reset. */
always_inline int answer_reset(struct packet *p, int reason, int unfit)
{
	bool partial = p->tuple.proto == IPPROTO_TCP && p->fragment == FRAGMENT_NONE && packet_partial(p);
	const struct tcphdr *tcp = packet_tcp(p);
	struct answer_link link;
	struct tcphdr was;

	if (!tcp || p->tuple.proto != IPPROTO_TCP || p->fragment != FRAGMENT_NONE || p->tcp_flags & TCP_RST)
		return conclude(p, unfit);
	if (!answer_allowed())
		return conclude(p, REASON_DROP_RATE_LIMITED);
	was = *tcp;
	__u32 header = p->l4_offset - p->l3_offset;
	__u32 payload = p->l3_length - header - was.doff * 4;
	if (!answer_link_save(p, &link) || !packet_resize(p, header + sizeof(was), 0) || !answer_link_write(p, &link) ||
	    !answer_reset_ip(p))
		return conclude(p, REASON_DROP_ANSWER_FAILED);
	p->l4 = p->data + (p->l4_offset & L4_OFFSET_MASK);
	if (!answer_reset_tcp(p, &was, payload, partial))
		return conclude(p, REASON_DROP_ANSWER_FAILED);
	return conclude(p, reason);
}
