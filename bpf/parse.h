/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From bytes to struct packet: one function a header, each checks its own bounds and returns CONTINUE or
 * the reason why the packet goes no further. What Linux drops as well is dropped, what is merely not our
 * business is handed to Linux; who has what is malformed above IP, stray.h says. */
#pragma once

#define EXTENSION_HEADERS_MAX 6
#define FRAGMENT_LIFETIME_MS 30000 /* as Linux: net.ipv4.ipfrag_time */

#define IP_DF bpf_htons(0x4000)
#define IP_MF bpf_htons(0x2000)
#define IP_OFFSET bpf_htons(0x1fff)
#define IP6_MF bpf_htons(0x0001)
#define IP6_OFFSET bpf_htons(0xfff8)

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum extension_header {
	EXTENSION_HOP_BY_HOP = 0,
	EXTENSION_ROUTING = 43,
	EXTENSION_FRAGMENT = 44,
	EXTENSION_AUTHENTICATION = 51,
	EXTENSION_DESTINATION = 60,
};

enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP6_UNREACHABLE = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_TIME_EXCEEDED = 3,
	ICMP6_PARAMETER_PROBLEM = 4,
	ICMP6_ECHO = 128,
	ICMP6_ECHO_REPLY = 129,
	ICMP6_MLD_QUERY = 130,
	ICMP6_REDIRECT = 137,
	ICMP6_MLD2_REPORT = 143,
};
#define ICMP_FRAGMENTATION_NEEDED 4 /* code of ICMP_UNREACHABLE */

enum parsing {
	PARSE_ENTRY,
	PARSE_AGAIN, /* it was received and counted before */
	PARSE_ALL,   /* again; also what only Linux can carry, as far as rules can ask for it (stray.h) */
};

always_inline bool is_tag(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

always_inline int parse_eth(struct packet *p, __be16 *proto, const enum parsing how)
{
	struct ethhdr *eth = p->data;

	if ((void *)(eth + 1) > p->end)
		return REASON_DROP_ETHERNET_SHORT;
	*proto = eth->h_proto;
	p->l3_offset = sizeof(*eth);
	if (how == PARSE_ALL)
		return CONTINUE;
	if (eth->h_dest[0] & 1) {
		bool ip = *proto == bpf_htons(ETH_P_IP) || *proto == bpf_htons(ETH_P_IPV6);
		return ip || is_tag(*proto) ? REASON_PUNT_MULTICAST : REASON_PUNT_NOT_IP;
	}
	if (!packet_for_us(p, eth))
		return REASON_PUNT_OTHER_HOST;
	return CONTINUE;
}

/* One 802.1Q or 802.1ad tag that stands in the frame. */
always_inline int parse_tag(struct packet *p, __be16 *proto)
{
	struct vlan_hdr *tag = p->data + p->l3_offset;

	keep_register(tag);
	if ((void *)(tag + 1) > p->end)
		return REASON_DROP_VLAN_SHORT;
	__u16 vid = bpf_ntohs(tag->h_vlan_TCI) & 0xfff;
	if (!p->vlan_outer)
		p->vlan_outer = vid;
	else
		p->vlan_inner = vid;
	p->l3_offset += sizeof(*tag);
	p->tags++;
	*proto = tag->h_vlan_encapsulated_proto;
	return CONTINUE;
}

/* The tags of the frame name a VLAN device; routing wants that one. */
always_inline int parse_vlan(struct packet *p, __be16 *proto)
{
	int reason;

	if (is_tag(*proto) && (reason = parse_tag(p, proto)) != CONTINUE)
		return reason;
	if (is_tag(*proto) && !p->vlan_inner && (reason = parse_tag(p, proto)) != CONTINUE)
		return reason;
	if (!p->vlan_outer)
		return CONTINUE; /* untagged, or VID 0: priority only */
	struct vlan_key key = {.ifindex = p->ifindex, .outer = p->vlan_outer, .inner = p->vlan_inner};
	struct vlan *vlan = bpf_map_lookup_elem(&vlan_v1, &key);
	if (!vlan)
		return REASON_PUNT_VLAN_UNKNOWN;
	p->ifindex = vlan->ifindex;
	return CONTINUE;
}

/* Does the frame hold all that the IP header promises? More is padding. */
always_inline int parse_length(struct packet *p, const enum parsing how)
{
	if (p->l3_offset + p->l3_length <= p->length)
		return CONTINUE;
	if (packet_is_gso(p))
		return CONTINUE; /* the stack made it; IPv6 jumbo says 0 */
	__u32 whole = packet_length(p);
	if (how == PARSE_ENTRY)
		count_received_rest(whole - p->length);
	p->length = whole;
	return p->l3_offset + p->l3_length <= p->length ? CONTINUE : REASON_DROP_IP_LENGTH;
}

always_inline bool ipv4_checksum_right(const struct iphdr *ip)
{
	const __u32 *words = (const __u32 *)ip;
	__u64 sum = (__u64)words[0] + words[1] + words[2] + words[3] + words[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	return fold(((__u32)sum & 0xffff) + ((__u32)sum >> 16) + (__u32)(sum >> 32)) == 0xffff;
}

always_inline int parse_ipv4(struct packet *p, const enum parsing how)
{
	struct iphdr *ip = p->data + p->l3_offset;

	keep_register(ip);
	if ((void *)(ip + 1) > p->end)
		return REASON_DROP_IP_HEADER;
	if (ip->version != 4 || ip->ihl < 5)
		return REASON_DROP_IP_HEADER;
	if (ip->ihl > 5 && how != PARSE_ALL)
		return REASON_PUNT_IP_OPTIONS;
	if (ip->ihl == 5 && !ipv4_checksum_right(ip))
		return REASON_DROP_IP_HEADER;
	p->l3 = ip;
	p->l3_length = bpf_ntohs(ip->tot_len);
	p->l4_offset = p->l3_offset + sizeof(*ip);
	if (how == PARSE_ALL)
		p->l4_offset = p->l3_offset + ip->ihl * 4;
	if (p->l3_length < sizeof(*ip) && !packet_is_gso(p))
		return REASON_DROP_IP_LENGTH;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->tuple.family = FAMILY_IPV4;
	p->tuple.proto = ip->protocol;
	p->tuple.src.v4 = ip->saddr;
	p->tuple.dst.v4 = ip->daddr;
	p->dont_fragment = !!(ip->frag_off & IP_DF);
	if (ip->frag_off & (IP_MF | IP_OFFSET)) {
		p->fragment = ip->frag_off & IP_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->fragment_id = ip->id;
	}
	__u8 top = bpf_ntohl(ip->daddr) >> 24;
	if ((top >= 224 || top == 127) && how != PARSE_ALL)
		return REASON_PUNT_MULTICAST;
	return parse_length(p, how);
}

/* A walk along the extension headers. */
struct walk {
	context *ctx;
	__u32 offset; /* of the header that `next` names */
	__u32 fragment_id;
	int reason; /* CONTINUE: at a layer 4 header, or still walking */
	__u8 next;
	__u8 fragment; /* enum fragment_kind */
	__u8 done;
	__u8 all; /* PARSE_ALL */
};

always_inline bool is_extension(__u8 next)
{
	return next == EXTENSION_HOP_BY_HOP || next == EXTENSION_ROUTING || next == EXTENSION_FRAGMENT ||
	       next == EXTENSION_AUTHENTICATION || next == EXTENSION_DESTINATION;
}

always_inline long walk_ends(struct walk *w, int reason)
{
	w->reason = reason;
	w->done = true;
	return 1;
}

/* One header (RFC 8200 4). Those that routers of the path act on (hop-by-hop, routing) are Linux' business;
 * authentication covers addresses, so it is too. */
static long walk_header(__u32 index, struct walk *w)
{
	struct packet p = {.ctx = w->ctx};
	__u8 header[8];

	if (!is_extension(w->next))
		return walk_ends(w, CONTINUE);
	if (!w->all && (w->next == EXTENSION_HOP_BY_HOP || w->next == EXTENSION_ROUTING))
		return walk_ends(w, REASON_PUNT_IP_OPTIONS);
	if (w->next == EXTENSION_AUTHENTICATION)
		return walk_ends(w, w->all ? CONTINUE : REASON_PUNT_PROTOCOL);
	if (packet_load(&p, w->offset, header, sizeof(header)))
		return walk_ends(w, REASON_DROP_EXTENSION_HEADER);
	__be16 where = *(__be16 *)(header + 2);
	if (w->next == EXTENSION_FRAGMENT && where & (IP6_OFFSET | IP6_MF)) {
		w->fragment = where & IP6_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		w->fragment_id = *(__u32 *)(header + 4);
	}
	w->offset += 8 + (w->next == EXTENSION_FRAGMENT ? 0 : header[1] * 8);
	w->next = header[0];
	return w->fragment == FRAGMENT_LATER ? walk_ends(w, CONTINUE) : 0;
}

always_inline int parse_extensions(struct packet *p, __u8 next, const enum parsing how)
{
	struct walk w = {.ctx = p->ctx, .offset = p->l4_offset, .next = next, .all = how == PARSE_ALL};

	p->tuple.proto = next;
	if (!is_extension(next))
		return CONTINUE;
	bpf_loop(EXTENSION_HEADERS_MAX + 1, walk_header, &w, 0);
	__u32 offset = w.offset;
	if (!w.done || offset > L4_OFFSET_MAX)
		return REASON_DROP_EXTENSION_HEADER;
	keep_register(offset);
	p->l4_offset = offset & L4_OFFSET_MAX; /* for the verifier */
	p->tuple.proto = w.next;
	p->fragment = w.fragment;
	p->fragment_id = w.fragment_id;
	return w.reason;
}

always_inline int parse_ipv6_header(struct packet *p, const enum parsing how)
{
	struct ipv6hdr *ip = p->data + p->l3_offset;

	keep_register(ip);
	if ((void *)(ip + 1) > p->end)
		return REASON_DROP_IP_HEADER;
	if (ip->version != 6)
		return REASON_DROP_IP_HEADER;
	p->l3 = ip;
	p->l3_length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	p->l4_offset = p->l3_offset + sizeof(*ip);
	p->ttl = ip->hop_limit;
	p->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	p->dont_fragment = true;
	p->tuple.family = FAMILY_IPV6;
	addr_load(&p->tuple.src, &ip->saddr);
	addr_load(&p->tuple.dst, &ip->daddr);
	__u8 first = ip->daddr.bytes[0], second = ip->daddr.bytes[1];
	if (how != PARSE_ALL && (first == 0xff || (first == 0xfe && (second & 0xc0) == 0x80)))
		return REASON_PUNT_MULTICAST;
	return parse_length(p, how);
}

always_inline int parse_ipv6(struct packet *p, const enum parsing how)
{
	int reason = parse_ipv6_header(p, how);

	if (reason != CONTINUE)
		return reason;
	const struct ipv6hdr *ip = p->l3;
	return parse_extensions(p, ip->nexthdr, how);
}

/* Does the IP packet, padding aside, hold a header of this size? */
always_inline bool parse_fits(const struct packet *p, __u32 size)
{
	return p->l4_offset - p->l3_offset + size <= p->l3_length || packet_is_gso(p);
}

/* The verifier has lost sight of an offset that depends on options. */
always_inline void *parse_at(const struct packet *p, const enum parsing how)
{
	return p->data + (how == PARSE_ALL ? p->l4_offset & L4_OFFSET_MAX : p->l4_offset);
}

always_inline int parse_tcp(struct packet *p, const enum parsing how)
{
	struct tcphdr *tcp = parse_at(p, how);

	keep_register(tcp);
	if ((void *)(tcp + 1) > p->end || !parse_fits(p, sizeof(*tcp)))
		return REASON_DROP_L4_SHORT;
	if (tcp->doff < 5 || !parse_fits(p, tcp->doff * 4))
		return REASON_DROP_L4_HEADER;
	p->l4 = tcp;
	p->l4_header = tcp->doff * 4;
	p->tuple.sport = tcp->source;
	p->tuple.dport = tcp->dest;
	p->tcp_flags = tcp->flags;
	return CONTINUE;
}

always_inline int parse_udp(struct packet *p, const enum parsing how)
{
	struct udphdr *udp = parse_at(p, how);

	keep_register(udp);
	if ((void *)(udp + 1) > p->end)
		return REASON_DROP_L4_SHORT;
	__u32 length = p->fragment == FRAGMENT_NONE ? bpf_ntohs(udp->len) : sizeof(*udp);
	if (length < sizeof(*udp) || !parse_fits(p, length))
		return parse_fits(p, sizeof(*udp)) ? REASON_DROP_L4_HEADER : REASON_DROP_L4_SHORT;
	p->l4 = udp;
	p->l4_header = sizeof(*udp);
	p->tuple.sport = udp->source;
	p->tuple.dport = udp->dest;
	return CONTINUE;
}

always_inline __u8 icmp_request(__u8 family)
{
	return family == FAMILY_IPV4 ? ICMP_ECHO : ICMP6_ECHO;
}

always_inline __u8 icmp_reply(__u8 family)
{
	return family == FAMILY_IPV4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY;
}

/* The identifier of an echo is the port of the side that asked. False: not an echo. */
always_inline bool icmp_ports(struct tuple *t, const struct icmphdr *icmp)
{
	if (icmp->type == icmp_request(t->family))
		t->sport = icmp->echo.id;
	else if (icmp->type == icmp_reply(t->family))
		t->dport = icmp->echo.id;
	else
		return false;
	return true;
}

always_inline int parse_icmp(struct packet *p, const enum parsing how)
{
	struct icmphdr *icmp = parse_at(p, how);

	keep_register(icmp);
	if ((void *)(icmp + 1) > p->end || !parse_fits(p, sizeof(*icmp)))
		return REASON_DROP_L4_SHORT;
	p->l4 = icmp;
	p->l4_header = sizeof(*icmp);
	p->icmp_type = icmp->type;
	p->icmp_echo = icmp_ports(&p->tuple, icmp);
	if (!p->icmp_echo && p->fragment && how != PARSE_ALL)
		return REASON_PUNT_ICMP; /* no flow of its own, and too little to tell of whose it speaks */
	return CONTINUE;
}

always_inline bool is_icmp(const struct tuple *t)
{
	return t->proto == (t->family == FAMILY_IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* TCP, UDP and ICMP, of which echoes have an identifier; others are only looked at where there is a firewall (stray.h). */
always_inline bool has_ports(const struct tuple *t)
{
	return t->proto == IPPROTO_TCP || t->proto == IPPROTO_UDP || is_icmp(t);
}

always_inline bool icmp_is_error(const struct packet *p)
{
	return p->tuple.family == FAMILY_IPV4 ?
		       p->icmp_type == ICMP_UNREACHABLE || p->icmp_type == ICMP_TIME_EXCEEDED ||
			       p->icmp_type == ICMP_PARAMETER_PROBLEM :
		       p->icmp_type >= ICMP6_UNREACHABLE && p->icmp_type <= ICMP6_PARAMETER_PROBLEM;
}

always_inline int parse_l4(struct packet *p, const enum parsing how)
{
	if (p->fragment == FRAGMENT_LATER)
		return CONTINUE;
	if (p->tuple.proto == IPPROTO_TCP)
		return parse_tcp(p, how);
	if (p->tuple.proto == IPPROTO_UDP)
		return parse_udp(p, how);
	if (is_icmp(&p->tuple))
		return parse_icmp(p, how);
	return how == PARSE_ALL ? CONTINUE : REASON_PUNT_PROTOCOL;
}

/* There are more tags than are read, and Linux reads on, priority tags as many as there are (net/core/dev.c, check_vlan_id):
 * what is behind them cannot be judged. */
always_inline int parse_tags_left(const enum parsing how)
{
	return how == PARSE_ALL ? REASON_DROP_FIREWALL : REASON_PUNT_VLAN_UNKNOWN;
}

/* Is it an untagged frame to this machine's link address, with room for a header of IPv4? Only looks: nothing is checked. */
always_inline bool parse_is_plain(struct packet *p)
{
	const struct ethhdr *eth = p->data;

	return (void *)(eth + 1) + sizeof(struct iphdr) <= p->end && !p->vlan_outer && !(eth->h_dest[0] & 1) &&
	       packet_for_us(p, eth);
}

always_inline int parse(struct packet *p, const enum parsing how)
{
	__be16 proto;
	int reason = parse_eth(p, &proto, how);

	if (reason != CONTINUE)
		return reason;
	if ((reason = parse_vlan(p, &proto)) != CONTINUE)
		return reason;
	if (proto == bpf_htons(ETH_P_IP))
		reason = parse_ipv4(p, how);
	else if (proto == bpf_htons(ETH_P_IPV6))
		reason = parse_ipv6(p, how);
	else
		return is_tag(proto) ? parse_tags_left(how) : REASON_PUNT_NOT_IP;
	if (reason != CONTINUE)
		return reason;
	return parse_l4(p, how);
}
