/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* packet.h for TC: an skb, perhaps many segments in one (GSO), its outer tag taken out of the frame, its
 * checksum perhaps left for the device to finish (CHECKSUM_PARTIAL) or known for the whole (COMPLETE). */
#pragma once

#define HEADERS_MAX 192 /* what must lie in the skb's linear part: tags, two IPv6 headers, TCP */
#define VLAN_VID_MASK 0xfff
#define CHECKSUM_UNNECESSARY 1
#define CHECKSUM_PARTIAL 3

always_inline bool packet_open(struct packet *p)
{
	packet_reload(p);
	p->length = p->ctx->len;
	p->ifindex = p->ctx->ifindex;
	if (p->ctx->vlan_present)
		p->vlan_outer = p->ctx->vlan_tci & VLAN_VID_MASK;
	__u32 headers = p->length < HEADERS_MAX ? p->length : HEADERS_MAX;
	if (p->data + headers > p->end) {
		if (bpf_skb_pull_data(p->ctx, headers))
			return false;
		packet_reload(p);
	}
	return true;
}

always_inline __u32 packet_length(struct packet *p)
{
	return p->ctx->len;
}

always_inline long packet_load(const struct packet *p, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes(p->ctx, offset, to, size);
}

always_inline bool packet_for_us(struct packet *p, const struct ethhdr *eth)
{
	return p->ctx->pkt_type != PACKET_OTHERHOST;
}

always_inline bool packet_is_gso(const struct packet *p)
{
	return p->ctx->gso_size != 0;
}

always_inline struct packet_sizes packet_sizes(const struct packet *p)
{
	__u32 size = p->ctx->gso_size;
	struct packet_sizes sizes = {.whole = p->l3_length, .segment = p->l3_length};

	if (size) {
		sizes.whole = p->ctx->len - p->l3_offset;
		sizes.segment = p->l4_offset - p->l3_offset + p->l4_header + size;
	}
	return sizes;
}

always_inline __u32 packet_l4_length(const struct packet *p)
{
	return packet_is_gso(p) ? p->ctx->len - p->l4_offset : p->l3_length - (p->l4_offset - p->l3_offset);
}

/* To read plain fields of: the kernel's own context is trusted, and what is read untrusted is checked each time. */
always_inline struct sk_buff *packet_skb(const struct packet *p)
{
	return bpf_cast_to_kern_ctx(p->ctx);
}

/* skb->ip_summed, where the kernel lets us see it; PARTIAL otherwise, which asks for the most care. */
always_inline __u8 packet_summed(const struct packet *p)
{
	if (!cw_kernel_context)
		return CHECKSUM_PARTIAL;
	struct sk_buff *skb = packet_skb(p);
	return BPF_CORE_READ_BITFIELD(skb, ip_summed);
}

/* Where ip_summed cannot be read it shows: a checksum that the device is to finish is not changed by a difference
 * that is not of the pseudo header (net/core/utils.c, inet_proto_csum_replace_by_diff). */
always_inline bool packet_partial_shows(struct packet *p, __u32 at)
{
	__u16 was, is;

	if (bpf_skb_load_bytes(p->ctx, at, &was, sizeof(was)) || bpf_l4_csum_replace(p->ctx, at, 0, 1, 0) ||
	    bpf_skb_load_bytes(p->ctx, at, &is, sizeof(is)))
		return false;
	return is == was || bpf_skb_store_bytes(p->ctx, at, &was, sizeof(was), 0);
}

always_inline bool packet_partial(struct packet *p)
{
	__u32 check = p->tuple.proto == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check);

	if (cw_kernel_context)
		return packet_summed(p) == CHECKSUM_PARTIAL;
	bool partial = packet_partial_shows(p, p->l4_offset + check);
	packet_reload(p);
	p->l4 = p->data + (p->l4_offset & L4_OFFSET_MAX);
	return partial;
}

/* IPv6 has no header checksum that would balance the change in what COMPLETE has summed. */
always_inline void packet_header_changed(struct packet *p, __u32 delta)
{
	if (delta && packet_summed(p) > CHECKSUM_UNNECESSARY)
		bpf_csum_update(p->ctx, fold(delta));
}

/* Where nobody's sum covers the checksum it is updated in the packet. The helper knows what PARTIAL and COMPLETE need;
 * ports are not part of what PARTIAL has already summed. */
always_inline bool packet_checksum(struct packet *p, __u32 offset, __u32 header_delta, __u32 addr_delta,
				   __u32 port_delta, bool udp)
{
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 at = p->l4_offset + offset;

	if (packet_summed(p) <= CHECKSUM_UNNECESSARY)
		return packet_checksum_write(p, offset, addr_delta, port_delta, udp);
	__u64 pseudo = BPF_F_PSEUDO_HDR;

	packet_header_changed(p, header_delta);
	if (port_delta && bpf_l4_csum_replace(p->ctx, at, 0, port_delta, flags))
		return false;
	if (cw_csum_ipv6_flag && p->tuple.family == FAMILY_IPV6)
		pseudo |= BPF_F_IPV6;
	if (addr_delta && bpf_l4_csum_replace(p->ctx, at, 0, addr_delta, flags | pseudo))
		return false;
	return true;
}

/* Has it come through IPsec? Then it needs a policy that lets it through (__xfrm_policy_check, net/xfrm/xfrm_policy.c). Asked only
 * where the kernel lets us see. */
always_inline bool packet_decrypted(const struct packet *p)
{
	if (!bpf_core_enum_value_exists(enum skb_ext_id, SKB_EXT_SEC_PATH))
		return false;
	struct sk_buff *skb = packet_skb(p);
	return skb->active_extensions & 1 << bpf_core_enum_value(enum skb_ext_id, SKB_EXT_SEC_PATH);
}

always_inline bool packet_tagged(const struct packet *p)
{
	return p->tags || p->ctx->vlan_present;
}

always_inline bool packet_tags(struct packet *p, __u16 outer, __u16 inner)
{
	if (p->ctx->vlan_present && bpf_skb_vlan_pop(p->ctx))
		return false;
	if (p->tags && bpf_skb_vlan_pop(p->ctx))
		return false;
	if (inner && bpf_skb_vlan_push(p->ctx, bpf_htons(ETH_P_8021Q), inner))
		return false;
	if (outer && bpf_skb_vlan_push(p->ctx, inner ? bpf_htons(ETH_P_8021AD) : bpf_htons(ETH_P_8021Q), outer))
		return false;
	return true;
}

always_inline int packet_transmit(struct packet *p, __u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}

always_inline int packet_return(struct packet *p)
{
	return bpf_redirect(p->ctx->ifindex, 0);
}

/* To Linux, as if the node itself had sent it. */
always_inline int packet_loop_back(void)
{
	return bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS);
}

/* There is nobody behind TC but Linux. */
always_inline bool packet_hand_over(struct packet *p)
{
	return false;
}

/* Generic XDP since kernel 6.9 copies the skb and forgets how long its link header is (net/core/skbuff.c,
 * skb_pp_cow_data): data then begins at layer 3, and the metadata seems to be the end of the link header. Put the
 * header where it belongs. */
always_inline bool packet_header_back(struct packet *p)
{
	struct ethhdr was, *eth;

	if (bpf_skb_load_bytes_relative(p->ctx, 0, &was, sizeof(was), BPF_HDR_START_MAC) ||
	    bpf_skb_change_head(p->ctx, sizeof(was), 0))
		return false;
	packet_reload(p);
	eth = p->data;
	if ((void *)(eth + 1) > p->end)
		return false;
	*eth = was;
	return true;
}

/* Did the XDP program in front leave this packet to us? */
always_inline bool packet_handed_over(struct packet *p)
{
	void *data = (void *)(long)p->ctx->data;
	struct hand_over *meta = (void *)(long)p->ctx->data_meta;

	if ((void *)(meta + 1) > data)
		return false;
	if (meta->magic == HAND_OVER_MAGIC)
		return true;
	if (meta->magic >> 16 != (__u16)p->ctx->protocol) /* the last two bytes of a link header */
		return false;
	return (void *)(meta + 2) > data && packet_header_back(p);
}

always_inline int packet_neighbour(struct packet *p, __u32 ifindex, struct bpf_redir_neigh *next)
{
	if (packet_tagged(p) && !packet_tags(p, 0, 0))
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(ifindex, next, sizeof(*next), 0);
}

always_inline bool packet_resize(struct packet *p, __u32 keep, __u32 room)
{
	if (bpf_skb_change_tail(p->ctx, p->l3_offset + keep, 0))
		return false;
	if (room && bpf_skb_change_head(p->ctx, room, 0))
		return false;
	if (bpf_skb_pull_data(p->ctx, p->l3_offset + room + keep))
		return false;
	packet_reload(p);
	return true;
}

always_inline bool packet_cut(struct packet *p, __u32 bytes)
{
	return !bpf_skb_change_tail(p->ctx, p->ctx->len - bytes, 0);
}

#define packet_ct_lookup bpf_skb_ct_lookup
#define packet_ct_alloc bpf_skb_ct_alloc

always_inline struct net_device *packet_device(const struct packet *p)
{
	struct sk_buff *skb = packet_kernel_context(p, struct sk_buff);

	return skb->dev;
}

/* For who looks at marks on the way out. */
always_inline void packet_mark(struct packet *p, __u32 mark)
{
	if (mark)
		p->ctx->mark = mark;
}
