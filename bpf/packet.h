/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet as the stages see it, the same for both hooks. What differs between XDP and TC stands in
 * packet_xdp.h and packet_tc.h, which implement these functions:
 *
 *   packet_open      set data, end, length, ifindex and the tags the device took out of the frame
 *   packet_for_us    is the frame addressed to this machine's link address?
 *   packet_sizes     bytes of layer 3: of the whole packet, and of the largest one that it becomes on the wire (GSO)
 *   packet_l4_length bytes of layer 4, header and payload, of the whole packet
 *   packet_checksum  apply differences to the checksum at that offset of layer 4; `header_delta` is not part of it.
 *                    The packet must be reloaded afterwards
 *   packet_header_changed
 *                    a header has changed, and no checksum in it balances that
 *   packet_tagged, packet_tags
 *                    does it carry tags, in the frame or beside it? Write others in their place
 *   packet_load      copy bytes out of the packet
 *   packet_transmit, packet_neighbour, packet_return, packet_hand_over
 *                    the ways out
 *   packet_cut       take bytes off its end; the packet must be reloaded afterwards
 *   packet_resize    cut the layer 3 part and make room in front of it (answers)
 *   packet_partial   is the layer 4 checksum left for the device to finish? Layer 3 must be found again afterwards
 *   packet_device    the receiving device, from the kernel's own context
 *   packet_mark      leaves with this mark
 */
#pragma once

#define LOOPBACK_IFINDEX 1 /* in every network namespace (net/core/net_namespace.c, loopback_net_init) */

/* Returned by a stage that has not decided: the packet goes on to the next one. All other results are
 * reasons. */
#define CONTINUE (-1)

#define L4_OFFSET_MAX 0x3fff /* more than all extension headers that are read can take */

#ifdef HOOK_XDP
typedef struct xdp_md context;
#else
typedef struct __sk_buff context;
#endif

struct packet {
	context *ctx;
	void *data;
	void *end;
	void *l3; /* IPv4 or IPv6 header, checked */
	void *l4; /* TCP, UDP or ICMP header, checked; NULL for FRAGMENT_LATER */
	struct parsed;
};

/* Written in front of a packet that TC, behind XDP on the same interface, is to finish. */
#define HAND_OVER_MAGIC 0x63775443

struct hand_over {
	__u32 magic;
};

struct packet_sizes {
	__u32 whole;
	__u32 segment;
};

always_inline void packet_reload(struct packet *p)
{
	p->data = (void *)(long)p->ctx->data;
	p->end = (void *)(long)p->ctx->data_end;
}

/* The checksum at `offset` of layer 4 updated in the packet. UDP: 0 says "none" and stays, a computed 0 is sent as
 * 0xffff (RFC 768, RFC 8200 8.1). */
always_inline bool packet_checksum_write(struct packet *p, __u32 offset, __u32 addr_delta, __u32 port_delta, bool udp)
{
	__u16 *checksum = p->l4 + offset;

	keep_register(checksum);
	if ((void *)(checksum + 1) > p->end)
		return false;
	if (udp && *checksum == 0)
		return true;
	*checksum = checksum_apply(*checksum, addr_delta + port_delta);
	if (udp && *checksum == 0)
		*checksum = 0xffff;
	return true;
}

/* The context as the kernel has it, to be read and not trusted: what a pointer out of a trusted structure is worth the verifier
 * looks up among all types of the kernel, each time that it comes by (kernel/bpf/btf.c, btf_nested_type_is_trusted). */
#define packet_kernel_context(P, TYPE) \
	((TYPE *)bpf_rdonly_cast(bpf_cast_to_kern_ctx((P)->ctx), bpf_core_type_id_kernel(TYPE)))

#ifdef HOOK_XDP
#include "packet_xdp.h"
#else
#include "packet_tc.h"
#endif

always_inline __u32 packet_l3_length(const struct packet *p)
{
	return packet_sizes(p).whole;
}

always_inline __u32 packet_segment(const struct packet *p)
{
	return packet_sizes(p).segment;
}

/* The verifier forgets what the parser has proved: that a packet whose protocol is TCP has a whole TCP header,
 * and that l3 was checked for the size of its family's header. */
always_inline struct tcphdr *packet_tcp(const struct packet *p)
{
	struct tcphdr *tcp = p->l4;

	return !tcp || (void *)(tcp + 1) > p->end ? NULL : tcp;
}

always_inline struct ipv6hdr *packet_ipv6(const struct packet *p)
{
	struct ipv6hdr *ip = p->l3;

	return (void *)(ip + 1) > p->end ? NULL : ip;
}

/* NULL where the kernel does not let us see it. */
always_inline struct net_device *packet_device_seen(const struct packet *p)
{
	return cw_kernel_context ? packet_device(p) : NULL;
}

/* The network namespace of the receiving device. */
always_inline struct net *packet_net(const struct packet *p)
{
	return packet_device(p)->nd_net.net;
}

/* Is it a port of a bridge? Whether the bridge takes the packet, and as whose, is still to be seen. */
always_inline bool device_is_bridged(const struct net_device *device)
{
	return BPF_CORE_READ_BITFIELD(device, priv_flags) & IFF_BRIDGE_PORT;
}

always_inline bool packet_bridged(const struct packet *p)
{
	return cw_kernel_context && device_is_bridged(packet_device(p));
}

/* Padding of the link that it came by goes no further, as in Linux (net/ipv4/ip_input.c, ip_rcv_core). What is to touch the packet
 * comes before. */
always_inline bool packet_trim(struct packet *p)
{
	__u32 end = p->l3_offset + p->l3_length;

	return p->length <= end || packet_is_gso(p) || packet_cut(p, p->length - end);
}

/* Two stores, where memcpy would take the three that an alignment of two bytes allows. */
always_inline void packet_write_mac(__u8 *to, const __u8 *mac)
{
	*(__u32 *)to = *(const __u32 *)mac;
	*(__u16 *)(to + 4) = *(const __u16 *)(mac + 4);
}

/* Tags and link addresses of the next hop; everything above layer 2 is finished by then. */
always_inline bool packet_link(struct packet *p, const __u8 *dmac, const __u8 *smac, __u16 outer, __u16 inner)
{
	if ((packet_tagged(p) || outer) && !packet_tags(p, outer, inner))
		return false;
	packet_reload(p);
	struct ethhdr *eth = p->data;
	if ((void *)(eth + 1) > p->end)
		return false;
	packet_write_mac(eth->h_dest, dmac);
	packet_write_mac(eth->h_source, smac);
	return true;
}
