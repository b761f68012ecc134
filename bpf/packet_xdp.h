/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* packet.h for XDP: the frame as the driver received it, tags in it, checksums complete. */
#pragma once

always_inline bool packet_open(struct packet *p)
{
	packet_reload(p);
	p->length = p->end - p->data; /* frames of several buffers: corrected where it matters (parse.h) */
	p->ifindex = p->ctx->ingress_ifindex;
	return true;
}

/* Bytes of the frame in all its buffers. */
always_inline __u32 packet_length(struct packet *p)
{
	return bpf_xdp_get_buff_len(p->ctx);
}

always_inline long packet_load(const struct packet *p, __u32 offset, void *to, __u32 size)
{
	return bpf_xdp_load_bytes(p->ctx, offset, to, size);
}

always_inline bool packet_for_us(struct packet *p, const struct ethhdr *eth)
{
	__u32 slot = p->ctx->ingress_ifindex % PORT_SLOTS;
	const struct port *port = bpf_map_lookup_elem(&port_v1, &slot);

	if (!port || port->ifindex != p->ctx->ingress_ifindex)
		return true;
	return *(__u32 *)port->mac == *(__u32 *)eth->h_dest && *(__u16 *)(port->mac + 4) == *(__u16 *)(eth->h_dest + 4);
}

always_inline struct packet_sizes packet_sizes(const struct packet *p)
{
	struct packet_sizes sizes = {.whole = p->l3_length, .segment = p->l3_length};

	return sizes;
}

always_inline bool packet_is_gso(const struct packet *p)
{
	return false;
}

always_inline __u32 packet_l4_length(const struct packet *p)
{
	return p->l3_length - (p->l4_offset - p->l3_offset);
}

always_inline bool packet_partial(struct packet *p)
{
	return false;
}

always_inline bool packet_checksum(struct packet *p, __u32 offset, __u32 header_delta, __u32 addr_delta,
				   __u32 port_delta, bool udp)
{
	return packet_checksum_write(p, offset, addr_delta, port_delta, udp);
}

always_inline bool packet_tagged(const struct packet *p)
{
	return p->tags;
}

/* Tags are written anew even when their number stays, so that a frame may change its VLAN. */
always_inline bool packet_tags(struct packet *p, __u16 outer, __u16 inner)
{
	int tags = !!outer + !!inner;
	struct vlan_hdr *tag;

	if (bpf_xdp_adjust_head(p->ctx, ((int)p->tags - tags) * (int)sizeof(struct vlan_hdr)))
		return false;
	packet_reload(p);
	if (p->data + sizeof(struct ethhdr) + 2 * sizeof(struct vlan_hdr) > p->end)
		return false;
	__be16 proto = p->tuple.family == FAMILY_IPV4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	struct ethhdr *eth = p->data;
	tag = p->data + sizeof(*eth);
	eth->h_proto = tags == 0 ? proto : tags == 1 ? bpf_htons(ETH_P_8021Q) : bpf_htons(ETH_P_8021AD);
	if (tags) {
		tag[0].h_vlan_TCI = bpf_htons(outer);
		tag[0].h_vlan_encapsulated_proto = tags == 1 ? proto : bpf_htons(ETH_P_8021Q);
	}
	if (tags == 2) {
		tag[1].h_vlan_TCI = bpf_htons(inner);
		tag[1].h_vlan_encapsulated_proto = proto;
	}
	return true;
}

always_inline int packet_transmit(struct packet *p, __u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}

/* Back to where it came from, tags and all. A redirect where the device takes them: for XDP_TX, veth rings its
 * peer only if that one has an XDP program too (drivers/net/veth.c, veth_xdp_flush). */
always_inline int packet_return(struct packet *p)
{
	__u32 ifindex = p->ctx->ingress_ifindex;
	const struct device *device = bpf_map_lookup_elem(&device_v1, &ifindex);

	return device && device->xdp_transmit ? bpf_redirect(ifindex, 0) : XDP_TX;
}

/* Leave the packet, untouched, to the TC program behind this one. */
always_inline bool packet_hand_over(struct packet *p)
{
	if (bpf_xdp_adjust_meta(p->ctx, -(int)sizeof(struct hand_over)))
		return false;
	struct hand_over *meta = (void *)(long)p->ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)p->ctx->data)
		return false;
	meta->magic = HAND_OVER_MAGIC;
	return true;
}

/* XDP cannot ask the neighbour table to resolve an address. */
always_inline int packet_neighbour(struct packet *p, __u32 ifindex, struct bpf_redir_neigh *next)
{
	return XDP_DROP;
}

/* Keep `keep` bytes of layer 3 and put `room` bytes before them. Afterwards data is the Ethernet header's
 * place again (tags included), followed by the room. */
always_inline bool packet_resize(struct packet *p, __u32 keep, __u32 room)
{
	int excess = (int)(p->l3_offset + keep) - (int)packet_length(p);

	if (bpf_xdp_adjust_tail(p->ctx, excess) || bpf_xdp_adjust_head(p->ctx, -(int)room))
		return false;
	packet_reload(p);
	return true;
}

always_inline bool packet_cut(struct packet *p, __u32 bytes)
{
	return !bpf_xdp_adjust_tail(p->ctx, -(int)bytes);
}

#define packet_ct_lookup bpf_xdp_ct_lookup
#define packet_ct_alloc bpf_xdp_ct_alloc

/* What IPsec has decrypted comes in no driver's frame. */
always_inline bool packet_decrypted(const struct packet *p)
{
	return false;
}

always_inline void packet_header_changed(struct packet *p, __u32 delta)
{
}

always_inline struct net_device *packet_device(const struct packet *p)
{
	struct xdp_buff *xdp = packet_kernel_context(p, struct xdp_buff);

	return xdp->rxq->dev;
}

/* A frame has none, and nobody looks for one: what does is left to TC (struct egress). */
always_inline void packet_mark(struct packet *p, __u32 mark)
{
}
