/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Both ends of a measurement, and the least that could stand between them.
 *
 *   generate4, generate6   one UDP packet of 64 bytes after the other, sent out of a device or dropped; run by
 *                          BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES
 *   sink, sink_tc          at the far end: counts what arrives and drops it
 *   echo                   the same, but sends it back, so that flows see replies
 *   pass_xdp, pass_tc      what a program that does nothing costs Linux
 *   bare_xdp, bare_tc      in the place of a data path: send everything on, look at nothing
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define always_inline static inline __attribute__((always_inline))

#define FRAME_BYTES 64
#define HOP_LIMIT 64
#define FIRST_HOST 0x0100 /* the host part of an address: 0.0 would be the network itself */
#define FIRST_PORT 1024
#define PORTS 0xf000

/* What the generator sends. Addresses as they stand in memory: IPv4 in the first four bytes, MAC in the
 * first six. */
const volatile __u32 out_ifindex = 0; /* out of which device; 0: drop */
const volatile __u32 flows = 0;	      /* they take turns; 0: every packet opens a new one */
const volatile __u32 host_shift = 0;  /* 1 << host_shift flows in a row share a client's address */
const volatile __u64 dmac = 0;
const volatile __u64 smac = 0;
const volatile __u64 src_low = 0; /* the host part, its last two bytes, is zero */
const volatile __u64 src_high = 0;
const volatile __u64 dst_low = 0;
const volatile __u64 dst_high = 0;
const volatile __u16 dport = 0;	 /* network order */
const volatile __u32 dports = 1; /* destination ports: the next one where the source ports are used up */

/* What the sink expects at an offset of every packet; others it counts as strange. */
const volatile __u32 expect_offset = 0;
const volatile __u32 expect_word = 0; /* as it stands in memory */

__u32 next_flow = 0; /* the generator runs on one CPU at a time */

enum arrival {
	ARRIVAL_EXPECTED,
	ARRIVAL_STRANGE,
	ARRIVAL_COUNT,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, ARRIVAL_COUNT);
} arrivals SEC(".maps");

/* ---- generate ---- */

always_inline __u32 take_flow(void)
{
	__u32 number = next_flow;

	next_flow = number + 1 == flows ? 0 : number + 1;
	return number;
}

always_inline __u16 host_of(__u32 number)
{
	return FIRST_HOST + (number >> host_shift);
}

always_inline __u16 port_of(__u32 number)
{
	return FIRST_PORT + number % PORTS;
}

always_inline __be16 destination_port_of(__u32 number)
{
	return bpf_htons(bpf_ntohs(dport) + number / PORTS % dports);
}

always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Ones' complement sum of COUNT 16-bit words, a constant. */
always_inline __u32 sum16(const void *words, __u32 count)
{
	const __u16 *word = words;
	__u32 sum = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < count; i++)
		sum += word[i];
	return sum;
}

always_inline void write_mac(void *mac, __u64 value)
{
	__u16 *words = mac;

	words[0] = value;
	words[1] = value >> 16;
	words[2] = value >> 32;
}

always_inline void write_ethernet(struct ethhdr *eth, __be16 type)
{
	write_mac(eth->h_dest, dmac);
	write_mac(eth->h_source, smac);
	eth->h_proto = type;
}

always_inline void write_address(__u32 *words, __u64 low, __u64 high)
{
	words[0] = low;
	words[1] = low >> 32;
	words[2] = high;
	words[3] = high >> 32;
}

/* A datagram of BYTES of flow NUMBER, its payload zero. ADDRESSES: their sum. */
always_inline void write_udp(struct udphdr *udp, __u32 number, __u16 bytes, __u32 addresses)
{
	__builtin_memset(udp, 0, bytes);
	udp->source = bpf_htons(port_of(number));
	udp->dest = destination_port_of(number);
	udp->len = bpf_htons(bytes);
	udp->check = ~fold(addresses + sum16(udp, sizeof(*udp) / 2) + bpf_htons(IPPROTO_UDP) + udp->len);
	if (!udp->check)
		udp->check = 0xffff;
}

always_inline int send_out(void)
{
	return out_ifindex ? bpf_redirect(out_ifindex, 0) : XDP_DROP;
}

SEC("xdp")
int generate4(struct xdp_md *ctx)
{
	const __u16 bytes = FRAME_BYTES - sizeof(struct ethhdr) - sizeof(struct iphdr);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 number = take_flow();

	if ((void *)eth + FRAME_BYTES > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_ethernet(eth, bpf_htons(ETH_P_IP));
	*ip = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*ip) / 4,
		.tot_len = bpf_htons(sizeof(*ip) + bytes),
		.ttl = HOP_LIMIT,
		.protocol = IPPROTO_UDP,
		.saddr = (__u32)src_low | bpf_htonl(host_of(number)),
		.daddr = dst_low,
	};
	ip->check = ~fold(sum16(ip, sizeof(*ip) / 2));
	write_udp((void *)(ip + 1), number, bytes, sum16(&ip->saddr, 4));
	return send_out();
}

SEC("xdp")
int generate6(struct xdp_md *ctx)
{
	const __u16 bytes = FRAME_BYTES - sizeof(struct ethhdr) - sizeof(struct ipv6hdr);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct ipv6hdr *ip = (void *)(eth + 1);
	__u32 number = take_flow();

	if ((void *)eth + FRAME_BYTES > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_ethernet(eth, bpf_htons(ETH_P_IPV6));
	*ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(bytes),
		.nexthdr = IPPROTO_UDP,
		.hop_limit = HOP_LIMIT,
	};
	write_address(ip->saddr.words, src_low, src_high);
	write_address(ip->daddr.words, dst_low, dst_high);
	ip->saddr.words[3] |= bpf_htonl(host_of(number));
	write_udp((void *)(ip + 1), number, bytes, sum16(&ip->saddr, 16));
	return send_out();
}

/* ---- receive ---- */

always_inline enum arrival count_arrival(const void *data, const void *end)
{
	__u32 index = ARRIVAL_STRANGE, offset = expect_offset;
	__u64 *count;

	if (offset <= FRAME_BYTES - sizeof(__u32)) {
		const __u32 *word = data + offset;

		if ((const void *)(word + 1) <= end && *word == expect_word)
			index = ARRIVAL_EXPECTED;
	}
	count = bpf_map_lookup_elem(&arrivals, &index);
	if (count)
		++*count;
	return index;
}

SEC("xdp.frags")
int sink(struct xdp_md *ctx)
{
	count_arrival((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	return XDP_DROP;
}

SEC("tc")
int sink_tc(struct __sk_buff *skb)
{
	count_arrival((void *)(long)skb->data, (void *)(long)skb->data_end);
	return TC_ACT_SHOT;
}

SEC("xdp.frags")
int pass_xdp(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("tc")
int pass_tc(struct __sk_buff *skb)
{
	return -1; /* TC_ACT_UNSPEC, TCX_NEXT */
}

always_inline void swap(void *left, void *right, __u32 bytes)
{
	__u8 kept[16];

	__builtin_memcpy(kept, left, bytes);
	__builtin_memcpy(left, right, bytes);
	__builtin_memcpy(right, kept, bytes);
}

/* Checksums stay right: a sum does not depend on the order of what is added. Not XDP_TX: a veth takes what its
 * peer returns that way only if it has an XDP program itself (drivers/net/veth.c, veth_xdp_flush). */
SEC("xdp.frags")
int echo(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct ipv6hdr *six = (void *)(eth + 1);
	struct iphdr *four = (void *)(eth + 1);
	struct udphdr *udp;

	if (count_arrival(eth, (void *)(long)ctx->data_end) != ARRIVAL_EXPECTED ||
	    (void *)eth + FRAME_BYTES > (void *)(long)ctx->data_end)
		return XDP_DROP;
	swap(eth->h_dest, eth->h_source, ETH_ALEN);
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		swap(&four->saddr, &four->daddr, sizeof(four->saddr));
		udp = (void *)(four + 1);
	} else {
		swap(&six->saddr, &six->daddr, sizeof(six->saddr));
		udp = (void *)(six + 1);
	}
	swap(&udp->source, &udp->dest, sizeof(udp->source));
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

/* ---- nothing but forwarding ---- */

SEC("xdp.frags")
int bare_xdp(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_ethernet(eth, eth->h_proto);
	return send_out();
}

SEC("tc")
int bare_tc(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	write_ethernet(eth, eth->h_proto);
	return bpf_redirect(out_ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
