/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the data path answers by itself, because Linux does not know the translated connection: time exceeded
 * and packet too big (RFC 792, RFC 1191, RFC 4443), here, and resets (reset.h). An ICMP error quotes the packet
 * as its sender sent it, comes from the device it arrived on, and goes back the way it came. */
#pragma once

#define ANSWERS_PER_SECOND 1000 /* a CPU; as Linux: net.ipv4.icmp_msgs_per_sec, icmp_msgs_burst */
#define ANSWERS_BURST 50
#define ANSWER_TTL 64
#define ANSWER_TOS 0xc0 /* internetwork control, as Linux (net/ipv4/icmp.c) */
#define IPV6_MIN_MTU 1280

struct ipv6_pseudo {
	union addr saddr;
	union addr daddr;
	__be32 length;
	__u8 zero[3];
	__u8 next;
};

always_inline bool answer_allowed(void)
{
	__u32 zero = 0;
	struct answer_bucket *bucket = bpf_map_lookup_elem(&answer_v1, &zero);

	if (!bucket)
		return false;
	__u32 elapsed = now() - bucket->seen;
	__u32 fresh = elapsed >= cw_hz ? ANSWERS_BURST : elapsed * ANSWERS_PER_SECOND / cw_hz;
	if (fresh) {
		bucket->seen = now();
		bucket->tokens += fresh;
		if (bucket->tokens > ANSWERS_BURST)
			bucket->tokens = ANSWERS_BURST;
	}
	if (!bucket->tokens)
		return false;
	bucket->tokens--;
	return true;
}

/* The address that the answer comes from: the receiving device's. */
always_inline bool answer_address(const struct packet *p, union addr *address)
{
	const struct device *device = bpf_map_lookup_elem(&device_v1, &p->ifindex);

	return device && nat_device_address(device, p->tuple.family, address);
}

/* Layer 2 of the packet that is answered. */
struct answer_link {
	struct ethhdr eth;
	struct vlan_hdr tags[2]; /* as many as the packet has; what follows it otherwise */
};

always_inline bool answer_link_save(const struct packet *p, struct answer_link *link)
{
	if (p->data + sizeof(*link) > p->end)
		return false;
	__builtin_memcpy(link, p->data, sizeof(*link));
	return true;
}

/* Link addresses swapped; the packet was moved, so tags and type are written where they belong now. */
always_inline bool answer_link_write(struct packet *p, const struct answer_link *link)
{
	struct ethhdr *eth = p->data;
	struct vlan_hdr *tag = (void *)(eth + 1);

	if (p->data + sizeof(*link) > p->end)
		return false;
	__builtin_memcpy(eth->h_dest, link->eth.h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, link->eth.h_dest, ETH_ALEN);
	eth->h_proto = link->eth.h_proto;
	if (p->tags >= 1)
		tag[0] = link->tags[0];
	if (p->tags == 2)
		tag[1] = link->tags[1];
	return true;
}

/* Layer 3 after the packet was resized. */
always_inline void *answer_l3(const struct packet *p)
{
	return p->data + (p->l3_offset & L3_OFFSET_MASK);
}

/* Sum over `size` bytes; the verifier wants a constant. -1: they are not there. */
always_inline __s64 answer_sum_of(const struct packet *p, void *at, const __u32 size)
{
	keep_register(at);
	return at + size > p->end ? -1 : bpf_csum_diff(0, 0, at, size, 0);
}

#define QUOTE_MIN 28   /* an IPv4 header and eight bytes behind it (RFC 792) */
#define QUOTE_SHORT 68 /* the same, with all the options that there may be */

always_inline __s64 answer_sum(const struct packet *p, void *at, __u32 size)
{
	if (size == 512)
		return answer_sum_of(p, at, 512);
	if (size == 128)
		return answer_sum_of(p, at, 128);
#pragma clang loop unroll(full)
	for (__u32 step = QUOTE_SHORT; step > QUOTE_MIN; step -= 4) {
		keep_register(size); /* lest the compiler puts it in the place of the constants again */
		if (size == step)
			return answer_sum_of(p, at, step);
	}
	return answer_sum_of(p, at, QUOTE_MIN);
}

/* How much of the packet is quoted: a whole TCP header, enough for every stack, little enough for every minimum
 * MTU. Steps, because the verifier wants to sum over constants. */
always_inline __u32 answer_quote(const struct packet *p)
{
	__u32 there = packet_length((struct packet *)p) - p->l3_offset;

	if (there > p->l3_length && !packet_is_gso(p))
		there = p->l3_length;
	if (there >= 128)
		return there >= 512 ? 512 : 128;
	if (there >= QUOTE_SHORT)
		return QUOTE_SHORT;
	return there > QUOTE_MIN ? there & ~3u : QUOTE_MIN;
}

/* What an ICMP error says. rest: the second word of its header. */
struct answer {
	__u8 type;
	__u8 code;
	__u8 from_destination; /* of the packet, which is an address of this machine; otherwise the receiving device's */
	__be32 rest;
};

/* When the device is to finish the quoted layer 4 checksum after us, its sum is known already: all of it
 * sums to the complement of the seed that stands in its place now. */
always_inline bool answer_seed(struct packet *p, __u16 *seed)
{
	__u32 check = p->tuple.proto == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check);

	if (!p->l4 || is_icmp(&p->tuple) || !packet_partial(p))
		return false;
	return !packet_load(p, p->l4_offset + check, seed, sizeof(*seed));
}

/* Sum over the quote as it will be on the wire. */
always_inline __s64 answer_quote_sum(const struct packet *p, void *at, __u32 keep, bool partial, __u16 seed)
{
	__u32 header = p->l4_offset - p->l3_offset;

	if (!partial)
		return answer_sum(p, at, keep);
	if (header == sizeof(struct iphdr))
		return answer_sum_of(p, at, sizeof(struct iphdr)) + (__u16)~seed;
	if (header == sizeof(struct ipv6hdr))
		return answer_sum_of(p, at, sizeof(struct ipv6hdr)) + (__u16)~seed;
	return -1;
}

always_inline bool answer_ipv4(struct packet *p, const struct answer *a, const union addr *from, __u32 keep, __s64 sum)
{
	struct iphdr *ip = answer_l3(p);
	struct icmphdr *icmp = (void *)(ip + 1);

	if ((void *)(icmp + 1) > p->end)
		return false;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = ANSWER_TOS;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + keep);
	ip->ttl = ANSWER_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = from->v4;
	ip->daddr = p->tuple.src.v4;
	ip->check = ~fold(bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
	icmp->type = a->type;
	icmp->code = a->code;
	icmp->mtu6 = a->rest;
	icmp->checksum = 0;
	icmp->checksum = ~fold(fold(sum) + (__u32)fold(bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp), 0)));
	return true;
}

always_inline bool answer_ipv6(struct packet *p, const struct answer *a, const union addr *from, __u32 keep, __s64 sum)
{
	struct ipv6hdr *ip = answer_l3(p);
	struct icmphdr *icmp = (void *)(ip + 1);
	struct ipv6_pseudo pseudo = {.saddr = *from,
				     .daddr = p->tuple.src,
				     .length = bpf_htonl(sizeof(*icmp) + keep),
				     .next = IPPROTO_ICMPV6};

	if ((void *)(icmp + 1) > p->end)
		return false;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 6;
	ip->payload_len = bpf_htons(sizeof(*icmp) + keep);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, from, sizeof(*from));
	__builtin_memcpy(&ip->daddr, &p->tuple.src, sizeof(p->tuple.src));
	icmp->type = a->type;
	icmp->code = a->code;
	icmp->mtu6 = a->rest;
	icmp->checksum = 0;
	__u32 head = bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp),
				   bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0));
	icmp->checksum = ~fold(fold(sum) + (__u32)fold(head));
	return true;
}

always_inline int answer_icmp(struct packet *p, const struct answer *a, int reason)
{
	bool v4 = p->tuple.family == FAMILY_IPV4;
	__u32 room = (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + sizeof(struct icmphdr);
	__u32 keep = answer_quote(p);
	struct answer_link link;
	union addr from;
	__u16 seed = 0;

	if (p->fragment == FRAGMENT_LATER)
		return conclude(p, REASON_DROP_NO_ANSWER);
	if (a->from_destination)
		from = p->tuple.dst;
	else if (!answer_address(p, &from))
		return conclude(p, REASON_DROP_ANSWER_FAILED);
	if (!answer_allowed())
		return conclude(p, REASON_DROP_RATE_LIMITED);
	bool partial = answer_seed(p, &seed);
	if (!answer_link_save(p, &link) || !packet_resize(p, keep, room))
		return conclude(p, REASON_DROP_ANSWER_FAILED);
	__s64 sum = answer_quote_sum(p, answer_l3(p) + room, keep, partial, seed);
	if (sum < 0 || !answer_link_write(p, &link))
		return conclude(p, REASON_DROP_ANSWER_FAILED);
	if (!(v4 ? answer_ipv4(p, a, &from, keep, sum) : answer_ipv6(p, a, &from, keep, sum)))
		return conclude(p, REASON_DROP_ANSWER_FAILED);
	return conclude(p, reason);
}

always_inline int answer_ttl(struct packet *p)
{
	struct answer a = {.type = p->tuple.family == FAMILY_IPV4 ? ICMP_TIME_EXCEEDED : ICMP6_TIME_EXCEEDED};

	return answer_icmp(p, &a, REASON_ANSWER_TTL_EXCEEDED);
}

always_inline int answer_too_big(struct packet *p, __u16 mtu)
{
	struct answer a = {.type = ICMP_UNREACHABLE,
			   .code = ICMP_FRAGMENTATION_NEEDED,
			   .rest = bpf_htonl(mtu)}; /* RFC 1191: unused and MTU, 16 bits each */

	if (p->tuple.family == FAMILY_IPV6) {
		a.type = ICMP6_TOO_BIG;
		a.code = 0;
		a.rest = bpf_htonl(mtu < IPV6_MIN_MTU ? IPV6_MIN_MTU : mtu);
	}
	return answer_icmp(p, &a, REASON_ANSWER_TOO_BIG);
}
