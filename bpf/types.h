/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Layouts of everything the data path keeps in maps. The control plane derives its numpy dtypes from
 * the BTF of these structs, so this file is the only place where a layout is written down.
 *
 * Conventions: addresses and ports are in network order (__be16, __be32, union addr); everything else is
 * in host order. An IPv4 address stands in the first four bytes of a union addr, the rest is zero.
 * A change of any layout changes LAYOUT_VERSION and the version in the map's name (maps.h). */
#pragma once

#define LAYOUT_VERSION 1

#define FAMILY_IPV4 4
#define FAMILY_IPV6 6

union addr {
	__u8 bytes[16];
	__be32 v4;
	__u32 words[4];
	__u64 quads[2];
};

/* What identifies one direction of a flow, as the packet shows it. ICMP echo uses its identifier as the
 * port of the side that asked: a request has (id, 0), its reply (0, id). */
struct tuple {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 family;
	__u8 pad[2]; /* keys are hashed as bytes: always zero */
};
_Static_assert(sizeof(struct tuple) == 40, "struct tuple");

/* ---- flow table: two entries a connection, one for each direction ---- */

struct flow4_key {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3]; /* hashed: always zero */
};
_Static_assert(sizeof(struct flow4_key) == 16, "struct flow4_key");

struct flow6_key {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3]; /* hashed: always zero */
};
_Static_assert(sizeof(struct flow6_key) == 40, "struct flow6_key");

enum flow_flags {
	FLOW_REPLY = 1 << 0,	   /* the direction that answers; without it: the one that opened */
	FLOW_SOURCE_NAT = 1 << 1,  /* this direction's source is rewritten */
	FLOW_DEST_NAT = 1 << 2,	   /* this direction's destination is rewritten */
	FLOW_FULL_NAT = 1 << 3,	   /* the connection belongs to a full-nat service */
	FLOW_HAS_SERVICE = 1 << 4, /* service and endpoint are valid */
	FLOW_HAS_NAT = 1 << 5,	   /* nat is valid */
	FLOW_PICKED_UP = 1 << 6,   /* TCP: learned in mid-stream, its SYN was never seen */
	FLOW_NEEDS_TC = 1 << 7,	   /* XDP cannot transmit through the egress device: TC carries it */
};

/* What this direction has sent so far. Only packets of this direction write it, so that no two CPUs
 * race for one connection's state: the state is derived from both directions (tcp.h, tcp_state). */
enum tcp_sent {
	SENT_SYN = 1 << 0,
	SENT_ACK = 1 << 1,
	SENT_FIN = 1 << 2,
	SENT_RST = 1 << 3, /* in window, hence believed */
};

/* The whole verdict for one direction of one connection, and its conntrack state. */
struct flow {
	__u64 packets;
	__u64 bytes;
	__u32 seen;	  /* jiffies (low 32 bits) of the last packet */
	__u32 stamp;	  /* generation.h: what was current when the next hop was resolved; 0 = unresolved */
	__u32 ifindex;	  /* egress device that transmits (below a VLAN device) */
	__u8 dmac[6];	  /* next hop */
	__u8 smac[6];	  /* egress device */
	__u16 mtu;	  /* of the route, layer 3 */
	__be16 sport;	  /* as it leaves */
	__be16 dport;	  /* as it leaves */
	__u16 vlan_outer; /* tags to push on egress, host order VID, 0 = none */
	__u16 vlan_inner;
	__u16 addr_delta; /* checksum difference made by the addresses (rewrite.h) */
	__u16 port_delta; /* checksum difference made by the ports */
	__u8 sent;	  /* enum tcp_sent */
	__u8 flags;	  /* enum flow_flags */
	__u32 tcp_ack;	  /* TCP: highest acknowledgement this direction has sent (host order) */
	__u32 tcp_window; /* TCP: the window that came with it, scaled, in bytes */
	__u32 service;	  /* id, if FLOW_HAS_SERVICE */
	__u32 endpoint;	  /* id, if FLOW_HAS_SERVICE */
	__u32 nat;	  /* id, if FLOW_HAS_NAT */
	__u32 created;	  /* jiffies (low 32 bits) */
	__u32 tcp_next;	  /* TCP: the sequence number after what this direction has sent */
	__u8 tcp_scale;	  /* TCP: the window scale in force for this direction (TCP_SCALE_OFFERED: tcp.h) */
	__u8 pad[3];	  /* to the alignment of an address */
	union addr src;	  /* as it leaves */
	union addr dst;
};
_Static_assert(sizeof(struct flow) == 120, "struct flow");

/* ---- fragments: the ports of a datagram whose first fragment was seen ---- */

struct fragment_key {
	union addr src;
	union addr dst;
	__u32 id;   /* IPv4: 16 bits; IPv6: 32 bits; network order */
	__u8 proto; /* IPv6: 0; options may follow the fragment header (RFC 8200 4.5 does not identify by it) */
	__u8 family;
	__u8 pad[2]; /* hashed: always zero */
};
_Static_assert(sizeof(struct fragment_key) == 40, "struct fragment_key");

struct fragment {
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
	__u32 seen; /* jiffies; believed for FRAGMENT_LIFETIME_MS (parse.h) */
};
_Static_assert(sizeof(struct fragment) == 12, "struct fragment");

/* ---- inbound: a tuple whose packets answer what Linux forwarded, so that no NAT rule may claim them ---- */

struct inbound {
	__u32 seen; /* jiffies of the last packet that Linux got */
};
_Static_assert(sizeof(struct inbound) == 4, "struct inbound");

/* ---- configuration: rows carry the epoch they belong to, active.epoch says which one counts ---- */

/* One word decides what traffic sees; every other table is written before it and cleaned after it. */
struct active {
	__u32 epoch;  /* clearway's own configuration generation, never 0 */
	__u32 mirror; /* bumped by the daemon for what only netlink tells: neighbours, links, addresses */
};
_Static_assert(sizeof(struct active) == 8, "struct active");

enum timeout {
	TIMEOUT_TCP_SYN_SENT,
	TIMEOUT_TCP_SYN_RECEIVED,
	TIMEOUT_TCP_ESTABLISHED,
	TIMEOUT_TCP_HALF_CLOSED,
	TIMEOUT_TCP_TIME_WAIT,
	TIMEOUT_TCP_CLOSED,
	TIMEOUT_UDP,
	TIMEOUT_UDP_STREAM,
	TIMEOUT_ICMP,
	TIMEOUT_COUNT,
};

enum midstream {
	MIDSTREAM_PICK_UP, /* balance by hash, translate, carry on */
	MIDSTREAM_DROP,
	MIDSTREAM_RESET, /* answer with RST */
};

struct config {
	__u32 epoch;
	__u32 services; /* number of rows of this epoch */
	__u32 nats;
	__u32 midstream; /* enum midstream */
	__u32 timeout_ms[TIMEOUT_COUNT];
};
_Static_assert(sizeof(struct config) == 52, "struct config");

enum service_mode {
	MODE_NAT,
	MODE_FULL_NAT,
};

enum service_algorithm {
	ALGORITHM_MAGLEV,
	ALGORITHM_ROUND_ROBIN,
};

struct service_key {
	__u32 epoch;
	__be16 port;
	__u8 proto;
	__u8 family;
	union addr address;
};
_Static_assert(sizeof(struct service_key) == 24, "struct service_key");

struct service {
	__u32 id;	   /* also the index of its round-robin cursor */
	__u32 wheel_base;  /* first slot in the wheel table */
	__u32 wheel_slots; /* number of slots; 0: nobody to send to */
	__u16 port_min;	   /* full-nat: source ports for the side of the endpoints */
	__u16 port_max;
	__u8 mode;	/* enum service_mode */
	__u8 algorithm; /* enum service_algorithm */
	__u8 pad[2];
};
_Static_assert(sizeof(struct service) == 20, "struct service");

/* An address that services translate from or to: what cannot be told to be a flow's is not leaked past it. */
struct claim {
	__u32 epoch;
	__u32 family;
	union addr address;
};
_Static_assert(sizeof(struct claim) == 24, "struct claim");

enum endpoint_state {
	ENDPOINT_FREE,
	ENDPOINT_ACTIVE,
	ENDPOINT_DRAINING, /* keeps its flows, is on no wheel */
};

struct endpoint {
	union addr address;
	__be16 port;
	__u8 family;
	__u8 state; /* enum endpoint_state */
	__u32 service;
};
_Static_assert(sizeof(struct endpoint) == 24, "struct endpoint");

/* Longest prefix wins. prefixlen counts from epoch: NAT_KEY_FIXED_BITS + the length of the source prefix. */
#define NAT_KEY_FIXED_BITS 96
struct nat_key {
	__u32 prefixlen;
	__u32 epoch;
	__u32 ifindex; /* egress, as the routing table names it */
	__u32 family;
	union addr source;
};
_Static_assert(sizeof(struct nat_key) == 32, "struct nat_key");

struct nat {
	__u32 id;
	__u32 addresses; /* size of the pool; 0: masquerade, take the egress device's address */
	__u16 port_min;
	__u16 port_max;
	__u32 pad;	  /* to the alignment of an address */
	union addr first; /* of the pool */
};
_Static_assert(sizeof(struct nat) == 32, "struct nat");

/* ---- the mirror: what the kernel knows about devices and an XDP program cannot ask ---- */

/* Key: ifindex as the routing table names it. */
struct device {
	__u32 lower;	  /* ifindex that transmits: itself, or the device below a VLAN device */
	__u16 vlan_outer; /* VIDs to push, 0 = none */
	__u16 vlan_inner;
	__be32 address4;   /* primary address, 0 = none */
	__u8 xdp_transmit; /* lower takes frames redirected by XDP */
	__u8 pad[3];
	union addr address6; /* primary global address, :: = none */
};
_Static_assert(sizeof(struct device) == 32, "struct device");

struct vlan_key {
	__u32 ifindex; /* device that received */
	__u16 outer;   /* VIDs */
	__u16 inner;
};
_Static_assert(sizeof(struct vlan_key) == 8, "struct vlan_key");

struct vlan {
	__u32 ifindex; /* the VLAN device */
};
_Static_assert(sizeof(struct vlan) == 4, "struct vlan");

/* The link address of a device with an XDP program, which has to tell by itself whether a frame is meant for
 * this machine. Direct-mapped: slot = ifindex % PORT_SLOTS; a slot that is empty or another device's decides nothing. */
#define PORT_SLOTS 4096
struct port {
	__u32 ifindex;
	__u8 mac[6];
	__u8 pad[2];
};
_Static_assert(sizeof(struct port) == 12, "struct port");

/* ---- statistics ---- */

struct counter {
	__u64 packets;
	__u64 bytes;
};
_Static_assert(sizeof(struct counter) == 16, "struct counter");

struct opened {
	__u64 connections; /* opened towards an endpoint */
};
_Static_assert(sizeof(struct opened) == 8, "struct opened");

/* Tokens for answers (ICMP errors, resets), one bucket a CPU. */
struct answer_bucket {
	__u32 seen; /* jiffies of the last refill */
	__u32 tokens;
};
_Static_assert(sizeof(struct answer_bucket) == 8, "struct answer_bucket");

/* ---- arguments of the SEC("syscall") programs (sweep.bpf.c) ---- */

struct sweep_args {
	__u32 visited; /* out: connections looked at */
	__u32 expired; /* out: connections removed */
};
_Static_assert(sizeof(struct sweep_args) == 8, "struct sweep_args");

struct clock_args {
	__u64 jiffies; /* out */
	__u64 boot_ns; /* out: nanoseconds since boot, CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct clock_args) == 16, "struct clock_args");
