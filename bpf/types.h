/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Layouts of everything the data path keeps in maps. The control plane derives its numpy dtypes from
 * the BTF of these structs, so this file is the only place where a layout is written down.
 *
 * Conventions: addresses and ports are in network order (__be16, __be32, union addr); everything else is
 * in host order. An IPv4 address stands in the first four bytes of a union addr, the rest is zero.
 * A change of any layout changes the version in the map's name (maps.h). */
#pragma once

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

/* ---- flow table (table.h): two entries a connection, one for each direction ---- */

/* Buckets of seven entries behind one line of marks: what a lookup touches is that line and the entry's own. */
#define FLOW_SLOTS 7

/* A mark tells what its slot holds: in its upper half a tag, in its lower half how often that has changed, odd
 * while somebody rewrites the next hop. All changes of a mark are atomic. */
enum flow_tag {
	FLOW_TAG_FREE,
	FLOW_TAG_CLAIMED, /* being written by who has claimed it */
	FLOW_TAG_BORN,	  /* written, not yet in force: two CPUs may be opening the same flow */
	FLOW_TAG_FIRST,	  /* this and all above: in force; a hash of the key */
};

struct flow_marks {
	__u32 mark[FLOW_SLOTS];
	__u32 rare[FLOW_SLOTS]; /* opening direction: endpoint, if FLOW_HAS_SERVICE; FLOW_ADOPTED: conntrack's mark;
				   answering: jiffies of its birth */
	__u8 nat[FLOW_SLOTS];	/* NAT rule, if FLOW_HAS_NAT; opening direction: lower byte, answering: upper byte */
	__u8 away;		/* entries that this is the first bucket of, and that stand in their second (table.h) */
};
_Static_assert(sizeof(struct flow_marks) == 64 && __builtin_offsetof(struct flow_marks, away) == 63,
	       "struct flow_marks");

/* What this direction has sent so far (SENT_*), what the other one has (HEARD_*), and what does not change. Both entries
 * tell all of it, so that each gives away the state of the connection by itself (state.h). Changed by atomic operations
 * only: either direction's packets, on any CPU, write both. */
enum flow_state {
	FLOW_PROTO = 0xff, /* the protocol's number */
	FLOW_SENT_SYN = 1 << 8,
	FLOW_SENT_ACK = 1 << 9, /* of other protocols than TCP: anything */
	FLOW_SENT_FIN = 1 << 10,
	FLOW_SENT_RST = 1 << 11, /* in window, hence believed */
	FLOW_SENT = 0xf << 8,	 /* all of these */
	FLOW_HEARD_SYN = 1 << 12,
	FLOW_HEARD_ACK = 1 << 13,
	FLOW_HEARD_FIN = 1 << 14,
	FLOW_HEARD_RST = 1 << 15,
	FLOW_SCALE = 0xf << 16,	      /* TCP: the window scale in force for this direction */
	FLOW_SCALE_OFFERED = 1 << 20, /* its SYN carried the option; it counts when both did (RFC 7323 1.3) */
	FLOW_MANGLE = 0x1f << 16,     /* FLOW_ADOPTED, which has no use for the scale: row of mangle_v1 */
	FLOW_REPLY = 1 << 21,	      /* the direction that answers; without it: the one that opened */
	FLOW_SOURCE_NAT = 1 << 22,    /* this direction's source is rewritten */
	FLOW_DEST_NAT = 1 << 23,      /* this direction's destination is rewritten */
	FLOW_FULL_NAT = 1 << 24,      /* the connection belongs to a full-nat service */
	FLOW_HAS_SERVICE = 1 << 25,   /* rare of the opening direction is an endpoint */
	FLOW_HAS_NAT = 1 << 26,
	FLOW_PICKED_UP = 1 << 27, /* TCP: learned in mid-stream, its SYN was never seen */
	FLOW_FOLDED = 1 << 28,	  /* has carried so much that carried_v1 has a row for it */
	FLOW_LINUX = 1 << 29,	  /* accepted by the firewall and carried by Linux: to or from this machine, mostly */
	FLOW_ADOPTED = 1 << 30,	  /* learned from Linux' conntrack (adopt.h) */
	FLOW_HONOURS = 1u << 31,  /* Linux' rules are asked about it (honour.h) */
};
#define FLOW_SENT_SHIFT 8
#define FLOW_HEARD_SHIFT 12
#define FLOW_SCALE_SHIFT 16
#define FLOW_MANGLE_SHIFT 16

/* The whole verdict for one direction of one connection, and its conntrack state: what both families share. */
struct flow {
	__u64 carried; /* packets << 32 + bytes; modulo 2^64, see flow.h */
	__u32 state;   /* enum flow_state */
	__u32 stamp;   /* generation.h: what was current when the next hop was resolved; 0 = unresolved */
	__u32 seen;    /* jiffies (low 32 bits) of the last packet */
	__u32 tcp_next; /* TCP: the sequence number after what this direction has sent; FLOW_ADOPTED: when Linux was asked (adopted.h) */
	__u32 tcp_ack; /* TCP: highest acknowledgement this direction has sent (host order); FLOW_ADOPTED: struct way */
	__u16 tcp_window; /* TCP: the window that came with it, to be scaled; FLOW_ADOPTED: likewise */
	__u16 egress;	  /* row of egress_v2: the device that transmits, and as whom */
	__u8 dmac[6];	  /* next hop */
	__u16 mtu;	  /* of the route, layer 3 */
	__be16 key_sport; /* as it arrives */
	__be16 key_dport;
	__be16 sport; /* as it leaves */
	__be16 dport;
};
_Static_assert(sizeof(struct flow) == 48, "struct flow");

struct flow4 {
	struct flow flow;
	__be32 key_src; /* as it arrives */
	__be32 key_dst;
	__be32 src; /* as it leaves */
	__be32 dst;
};
_Static_assert(sizeof(struct flow4) == 64, "struct flow4");

struct flow6 {
	struct flow flow;
	union addr key_src; /* as it arrives */
	union addr key_dst;
	union addr src; /* as it leaves */
	union addr dst;
	__u16 addr_delta; /* checksum difference made by the addresses: over IPv4 it is computed as fast as read */
	__u8 pad[14];	  /* to two cache lines */
};
_Static_assert(sizeof(struct flow6) == 128, "struct flow6");

struct flow4_bucket {
	struct flow_marks marks;
	struct flow4 slot[FLOW_SLOTS];
};
_Static_assert(sizeof(struct flow4_bucket) == 512, "struct flow4_bucket");

struct flow6_bucket {
	struct flow_marks marks;
	struct flow6 slot[FLOW_SLOTS];
};
_Static_assert(sizeof(struct flow6_bucket) == 960, "struct flow6_bucket");

/* There is room for two tables of each family: the current one, and one whose flows are moving to it. */
#define FLOW_TABLES 2
#define FLOW_HASH_WORDS 11

struct flow_tables {
	__u64 key[FLOW_HASH_WORDS];  /* of the hash: secret, made with the tables */
	__u32 current;		     /* which of the two */
	__u32 buckets4[FLOW_TABLES]; /* 0: there is none */
	__u32 buckets6[FLOW_TABLES];
	__u32 max_flows; /* that the current one was made for */
	__u32 records;	 /* somebody reads records_v1 */
	__u32 events;	 /* somebody reads events_v1 */
};
_Static_assert(sizeof(struct flow_tables) == 120, "struct flow_tables");

/* Why a connection has left the table. */
enum flow_end {
	FLOW_END_EXPIRED,	  /* idle for longer than its state allows */
	FLOW_END_REOPENED,	  /* over, and its tuple was wanted again */
	FLOW_END_ENDPOINT_GONE,	  /* its endpoint was removed */
	FLOW_END_EVICTED_EXPIRED, /* a newcomer found the table full: this one had expired, the sweep had not come by */
	FLOW_END_EVICTED_CLOSED,  /* TIME_WAIT, or reset */
	FLOW_END_EVICTED_HALF_OPEN, /* or unanswered */
	FLOW_END_EVICTED_IDLE,	    /* not TCP */
	FLOW_END_ORPHAN,	    /* half a connection */
	FLOW_END_RELEASED,	    /* to Linux: the firewall that it was opened for is not there any more */
	FLOW_END_RESET,		    /* adopted: a RST came, which is Linux' to believe */
	FLOW_END_LINUX, /* adopted: Linux ends it, does not hold it any more, or its rules may not be left out */
	FLOW_END_COUNT,
};

/* How a connection was, when it ended. */
struct flow_record {
	struct tuple client; /* as the opening direction arrives */
	struct tuple leaves;
	__u64 packets; /* of the opening direction */
	__u64 bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 ended;   /* jiffies */
	__u32 created; /* jiffies (low 32 bits), and so the next two */
	__u32 seen;
	__u32 reply_seen;
	__u32 state;	/* enum flow_state of the opening direction */
	__u32 endpoint; /* if FLOW_HAS_SERVICE; FLOW_ADOPTED: conntrack's mark */
	__u16 nat;	/* if FLOW_HAS_NAT */
	__u8 why;	/* enum flow_end */
	__u8 pad;
};
_Static_assert(sizeof(struct flow_record) == 144, "struct flow_record");

/* By which device the packets of a direction come in, and by which they leave, as rules and routes name them; 0: none came. Of
 * an adopted flow, which has no use for TCP's window: inside << WAY_BITS + outside, the lower part of it in tcp_ack. */
#define WAY_BITS 24
#define WAY_MAX ((1 << WAY_BITS) - 1)
struct way {
	__u32 inside;
	__u32 outside;
};

/* The same for an adopted one: by what its packets came in and left, rules can be told that they would have met. */
struct adopted_record {
	struct flow_record flow;
	struct way way; /* of the opening direction */
	struct way reply_way;
};
_Static_assert(sizeof(struct adopted_record) == 160, "struct adopted_record");

/* What a packet leaves by, and with. Flows that share both share a row; who resolves a next hop fills it in (egress.h). */
#define EGRESS_ROWS 8192
struct egress {
	__u32 stamp;	  /* generation.h: under which it was filled in; what carries another one does not use it */
	__u32 route;	  /* ifindex of the device as the routing table names it */
	__u32 ifindex;	  /* device that transmits (below a VLAN device) */
	__u16 vlan_outer; /* tags to push, host order VID, 0 = none */
	__u16 vlan_inner;
	__u8 smac[6];
	__u8 xdp_transmit; /* the device takes frames redirected by XDP */
	__u8 family;	   /* whose packets leave by it: `stamp` is of one family */
	__u32 mark;	   /* that Linux would send it with */
};
_Static_assert(sizeof(struct egress) == 28, "struct egress");

/* What a flow has carried beyond what its entry can count. */
struct carried_key {
	__u32 slot; /* bucket * FLOW_SLOTS + slot */
	__u8 family;
	__u8 table;  /* which of FLOW_TABLES */
	__u8 pad[2]; /* hashed: always zero */
};
_Static_assert(sizeof(struct carried_key) == 8, "struct carried_key");

struct carried {
	__u64 packets; /* up to when it was written; the entry goes on from there (flow.h) */
	__u64 bytes;
};
_Static_assert(sizeof(struct carried) == 16, "struct carried");

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

/* ---- adoption (adopt.h) ---- */

/* What the control plane has proved about the rules of Linux. Written in two steps, `what` empty in between. */
struct trust {
	__u32 base_seq; /* the nftables ruleset that it holds for (include/net/netns/nftables.h) */
	__u32 own_seq;	/* and the one that clearway itself makes of it, by changing its own table */
	__u32 what;	/* enum trusted */
	__u32 honours;	/* enum honours */
	__u32 policies; /* of IPsec, about what is forwarded: how many there were */
};
_Static_assert(sizeof(struct trust) == 20, "struct trust");

enum trusted {
	TRUST_IPV4 = 1 << 0,
	TRUST_IPV6 = 1 << 1,
	TRUST_MARKED = 1 << 2, /* rules speak of marks: marking_v1 is to be asked */
	TRUST_OTHER = 1 << 3,  /* the other of two sets of classifiers */
	TRUST_NAT_IPV4 =
		1 << 4, /* there are rules of NAT: otherwise Linux translates nothing, whatever it did before */
	TRUST_NAT_IPV6 = 1 << 5,
	TRUST_HONOUR = 1 << 6,	 /* what rules do with traffic that clearway's own services and NAT claim (honour.h) */
	TRUST_ASK_IPV4 = 1 << 7, /* there are rules on its way: it is asked about */
	TRUST_ASK_IPV6 = 1 << 8,
};

enum honours {
	HONOURS_RULES = 1 << 0, /* somebody proves them, so that services and NAT can respect them */
	HONOURS_TABLE = 1 << 1, /* Linux can balance and translate what is left to it (compiler/nft_table.py) */
};

/* Where rules stand: what they see of a packet that is translated. */
enum view {
	VIEW_BEFORE,  /* as it arrives */
	VIEW_BETWEEN, /* with the destination that it leaves with */
	VIEW_AFTER,   /* as it leaves */
	VIEWS,
	VIEW_BACK = VIEWS, /* no view: the place of the classifier that tells of whom a way back is asked, enum back */
};

/* What rules want to be true of the route to a packet's sender. */
enum back {
	BACK_LOOSE = 1, /* there is one */
	BACK_STRICT,	/* it leaves by the device that the packet came in by */
	BACK_DEVICE,	/* likewise, and policy rules are asked by that device */
};

/* Places of classifier_v3, the first of each: what rules keep in Linux of adopted connections, of first packets of clearway's
 * own, and of those that follow (both directions); what they change in adopted ones; which marks these have. By which of two
 * sets << 3, view (of marks: enum marked_where) << 1, family. */
#define KEEP_PLACES 16
#define FIRST_PLACES 32
#define LATER_PLACES 48
#define MANGLE_PLACES 64
#define MARK_PLACES 80

/* What rules change in the packets of a flow: of the type of service, or traffic class, all but tos_keep, which tos_flip is put
 * over; and how many hops are left when the packet leaves: what it came with under hops_keep, plus hops_add, hops_most at most. */
#define MANGLES 32 /* the first one: nothing */
struct mangle {
	__s16 hops_add;
	__u8 hops_keep; /* all bits, or none */
	__u8 hops_most;
	__u8 tos_keep;
	__u8 tos_flip;
	__u8 early; /* routing sees that type of service */
	__u8 pad;   /* to a word */
};
_Static_assert(sizeof(struct mangle) == 8, "struct mangle");

/* Marks (src/clearway/proof/marks.py). Rules treat connections alike whose marks are of one class, and packets of a connection
 * have marks that are made of its own. */
#define MARK_TESTS 256
#define MARKS_MADE 64

struct mark_test {
	__u32 mask;
	__u32 value;
	__u32 class;
};

enum marked_where {
	MARKED_ROUTED, /* where packets are routed */
	MARKED_LEFT,   /* where they leave */
	MARKED_PLACES,
};

/* The marks that packets may have somewhere. */
struct mark_told {
	__u32 asked; /* a classifier tells which; otherwise the first */
	__u32 view;  /* enum view: by which addresses */
	struct {
		__u32 connection; /* the connection's mark & this ^ toggle */
		__u32 toggle;
	} made[MARKS_MADE];
};

struct marking {
	__u32 tests;
	struct mark_told told[2 * MARKED_PLACES]; /* first of IPv4 */
	struct mark_test test[MARK_TESTS];	  /* what meets none is Linux' */
};
_Static_assert(sizeof(struct marking) == 5156, "struct marking");

#define REFUSED_ROWS 65536
#define NEIGHBOUR_ROWS 4096

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

enum when_full {
	WHEN_FULL_DROP,
	WHEN_FULL_STATELESS, /* services that can (struct service) balance without an entry */
};

enum firewall {
	FIREWALL_ON = 1 << 0,
	FIREWALL_AFTER = 1 << 1, /* there are rules about what is translated */
};

struct config {
	__u32 epoch;
	__u32 services; /* number of rows of this epoch */
	__u32 nats;
	__u32 origins;
	__u32 midstream; /* enum midstream */
	__u32 when_full; /* enum when_full */
	__u32 timeout_ms[TIMEOUT_COUNT];
	__u32 next_endpoint; /* the compiler's: ids go round, so that what flows may still name is not given out again soon */
	__u32 next_nat;
	__u32 next_rule;
	__u32 firewall;		  /* enum firewall */
	__u32 otherwise;	  /* RULE_*, of what meets no rule */
	__u32 rules;		  /* rows of rule_v1 */
	__u32 counters;		  /* rows of judged_v1 for each CPU */
	__u8 firewall_digest[16]; /* the compiler's: of rules and sets */
	__u32 scrub;		  /* there are lists of prefixes */
	__u8 scrub_digest[16];	  /* the compiler's: of these */
};
_Static_assert(sizeof(struct config) == 124, "struct config");

/* Lists of prefixes are an array of lines: a filter, then buckets, then ranges (scrub.h). Addresses are numbers of 128 bits, those
 * of IPv4 in the upper 32. */
struct prefix_index {
	__u64 seed;
	__u32 words;	   /* of the filter */
	__u32 shift;	   /* a granule is what the upper half of an address has above these bits */
	__u32 bucket_line; /* the first one */
	__u32 buckets;	   /* homes; those behind the last are for what has run over */
	__u32 probes;	   /* buckets that a granule can be in, from its home on */
	__u32 range_line;
};
_Static_assert(sizeof(struct prefix_index) == 32, "struct prefix_index");

#define SCRUB_PLACES 8 /* two epochs, kinds and families */

/* What is turned away before anything is known of it. */
struct scrubbing {
	__u32 on; /* 0: nothing is */
	__u32 pad;
	struct prefix_index index[SCRUB_PLACES];
};
_Static_assert(sizeof(struct scrubbing) == 264, "struct scrubbing");

#define FILTER_WORDS 8		/* of a line */
#define PREFIX_WHOLE (1u << 31) /* the granule has one entry, and that is list's */
#define PREFIX_TIME_SHIFT 10	/* jiffies to the units that entries expire in */
#define GRANULES_OF_BUCKET 4
#define RANGES_OF_LINE 4 /* IPv4; IPv6: 1 */

struct prefix_granule {
	__u64 granule;
	__u32 at;    /* its first range; PREFIX_WHOLE: when it expires, 0: never */
	__u32 count; /* of its ranges; PREFIX_WHOLE | list; 0: nothing stands here */
};
_Static_assert(sizeof(struct prefix_granule) * GRANULES_OF_BUCKET == 64, "struct prefix_granule");

struct prefix_range4 {
	__u32 first;
	__u32 last;
	__u32 expires;
	__u32 list;
};
_Static_assert(sizeof(struct prefix_range4) * RANGES_OF_LINE == 64, "struct prefix_range4");

struct prefix_range6 {
	__u64 first[2]; /* the upper half, then the lower */
	__u64 last[2];
	__u32 expires;
	__u32 list;
	__u64 pad[3];
};
_Static_assert(sizeof(struct prefix_range6) == 64, "struct prefix_range6");

#define LISTS 256

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
	__u8 stateless; /* without a place in the table its connections go on without an entry */
	__u8 bypass;	/* Linux' rules are not asked */
};
_Static_assert(sizeof(struct service) == 20, "struct service");

/* Of a stateless service's endpoint, by its address, port and protocol (struct service_key): who it answers for. */
struct origin {
	union addr address;
	__be16 port;
	__u8 bypass; /* Linux' rules are not asked */
	__u8 pad[5]; /* to the alignment of an address */
};
_Static_assert(sizeof(struct origin) == 24, "struct origin");

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
	__u8 bypass;	  /* Linux' rules are not asked */
	__u8 pad[3];	  /* to the alignment of an address */
	union addr first; /* of the pool */
};
_Static_assert(sizeof(struct nat) == 32, "struct nat");

/* ---- firewall ---- */

enum firewall_action {
	FIREWALL_ACCEPT,
	FIREWALL_DROP,
	FIREWALL_REJECT,
};

/* What a rule does with those who meet it, in one word, so that those of 100,000 rules are at hand: its counter, and above
 * it an action and whether that is told. Rules keep their counter for as long as there is one of that name. */
#define RULE_COUNTER 0xffffff
#define RULE_ACTION_SHIFT 24 /* enum firewall_action */
#define RULE_LOG (1 << 31)

/* What a rule has decided: packets that opened a connection, or were refused. */
struct judged {
	__u64 packets;
	__u64 bytes;
	__u64 last; /* jiffies */
};
_Static_assert(sizeof(struct judged) == 24, "struct judged");

/* A decision, for whoever follows the log. */
#define EVENT_HEAD 128 /* of the packet, from layer 3 on */
struct firewall_event {
	__u64 at;	/* jiffies */
	__u64 identity; /* of the rule */
	__u32 ifindex_in;
	__u32 ifindex_out; /* 0: to the machine itself */
	__u32 length;	   /* bytes of the frame */
	__u16 vlan;
	__u8 action; /* enum firewall_action */
	__u8 family;
	__u8 proto; /* behind extension headers */
	__u8 known; /* the packet of a connection that was accepted once */
	__u8 head_length;
	__u8 tcp_flags;
	__u8 pad[4];
	struct tuple tuple; /* as the packet arrived */
	__u8 head[EVENT_HEAD];
};
_Static_assert(sizeof(struct firewall_event) == 208, "struct firewall_event");

/* ---- the mirror: what the kernel knows about devices and an XDP program cannot ask ---- */

/* Key: ifindex as the routing table names it. */
struct device {
	__u32 lower;	  /* ifindex that transmits: itself, or the device below a VLAN device */
	__u16 vlan_outer; /* VIDs to push, 0 = none */
	__u16 vlan_inner;
	__be32 address4;   /* primary address, 0 = none */
	__u8 xdp_transmit; /* lower takes frames redirected by XDP */
	__u8 proved;	   /* the proof of Linux' rules (struct trust) knows the device by its name */
	__u8 pad[2];
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

/* A device that clearway takes packets from, and its link address: an XDP program has to tell by itself whether a frame is
 * meant for this machine. Direct-mapped: slot = ifindex % PORT_SLOTS; a slot that is empty or another device's decides nothing. */
#define PORT_SLOTS 4096
struct port {
	__u32 ifindex;
	__u8 mac[6];
	__u8 listened; /* a packet socket is to see what arrives: XDP leaves it to TC, which comes after those */
	__u8 pad;
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

/* A part of one table. */
struct sweep_args {
	__u32 family;
	__u32 table; /* which of FLOW_TABLES */
	__u32 first; /* bucket */
	__u32 buckets;
	__u32 every; /* in one of so many buckets, number `turn`, each entry's pair is looked for */
	__u32 turn;
	__u32 visited; /* out: connections looked at */
	__u32 expired; /* out: connections removed */
};
_Static_assert(sizeof(struct sweep_args) == 32, "struct sweep_args");

struct move_args {
	__u32 family;
	__u32 first; /* bucket of the table that is not the current one */
	__u32 buckets;
	__u32 moved; /* out: connections */
	__u32 left;  /* out: connections for which there was no place, or which are just changing */
};
_Static_assert(sizeof(struct move_args) == 20, "struct move_args");

struct release_args {
	struct tuple key; /* of either direction */
	__u32 released;	  /* out: there was such a connection, an adopted one */
	__u32 pad;	  /* to the alignment of an address */
};
_Static_assert(sizeof(struct release_args) == 48, "struct release_args");

struct clock_args {
	__u64 jiffies; /* out */
	__u64 boot_ns; /* out: nanoseconds since boot, CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct clock_args) == 16, "struct clock_args");

/* ---- classifiers (classify.h): the lines of an array, each of 64 bytes ---- */

#define CLASSIFIER_GROUPS 256
#define FIELD_WORDS 7

/* What rules can ask of a packet:
 *
 *   0, 1  source address: IPv6 upper and lower half, IPv4 and 0; as numbers
 *   2, 3  destination address
 *   4     source port << 48 | destination port (ICMP: type) << 32 | protocol << 24 | DSCP << 16 | TCP flags << 8 |
 *         class of the connection's mark << 1 | to the machine itself: 1
 *   5     ifindex in << 38 | ifindex out << 12 | VID; indexes in 26 bits, those that are larger: all ones
 *   6     labels, 16 bits of each enum classified */
struct fields {
	__u64 words[FIELD_WORDS];
};
_Static_assert(sizeof(struct fields) == 56, "struct fields");

/* What is looked up by itself. */
enum classified {
	CLASSIFIED_SOURCE,
	CLASSIFIED_DESTINATION,
	CLASSIFIED_SPORT,
	CLASSIFIED_DPORT,
	CLASSIFIED_COUNT,
};

/* Line 0. */
struct classifier_head {
	__u32 tree[CLASSIFIED_COUNT]; /* line of the first of two; 0: no rule asks for this field */
	__u32 groups;		      /* line of the first, and so the next two */
	__u32 moves;
	__u32 entries;
	__u32 move_count;
	__u64 seed; /* of the hash */
	__u32 group_count;
	__u32 entry_count; /* places for them */
	__u32 pad[4];
};
_Static_assert(sizeof(struct classifier_head) == 64, "struct classifier_head");

/* Intervals of numbers, by a tree: nodes are lines of eight boundaries, each the last number of its interval; those of the
 * lowest level are leaves. A field has two of them, one line after the other: of numbers without the uppermost bit, and of
 * the others, less that bit. In a wide tree, which is one, a number has two words, and a node a line of upper and then one of
 * lower words; of the lowest level's, a third line has the values. */
struct classifier_tree {
	__u32 levels;
	__u32 base[15]; /* line of the first node of each level */
};
_Static_assert(sizeof(struct classifier_tree) == 64, "struct classifier_tree");
#define CLASSIFIER_WIDE 0x80000000 /* beside the line of a tree */

#define LEAF_KEYS 5
struct classifier_leaf {
	__u64 keys[LEAF_KEYS];
	__u32 values[LEAF_KEYS + 1]; /* lines of classes */
};
_Static_assert(sizeof(struct classifier_leaf) == 64, "struct classifier_leaf");

/* What all packets with this address, or port, have in common. */
#define CLASS_LABELS 12
struct classifier_class {
	__u64 groups[CLASSIFIER_GROUPS / 64]; /* bits: have a rule for them, as far as this field goes */
	__u32 labels;			      /* how many */
	__u32 list;			      /* line of the first, if they are more than CLASS_LABELS; 32 a line */
	__u16 label[CLASS_LABELS];
};
_Static_assert(sizeof(struct classifier_class) == 64, "struct classifier_class");

/* Rules that ask for the same fields. */
struct classifier_group {
	struct fields mask;
	__u32 best; /* rule */
	__u32 asks; /* bits of enum classified: for a label; CLASSIFIER_CHAINED */
};
#define CLASSIFIER_CHAINED 0x80000000 /* its entries lead to chains: the mask is looser than what some rows ask for */
_Static_assert(sizeof(struct classifier_group) == 64, "struct classifier_group");

/* Stands where its hash says, after the hash has been moved by what the compiler has found out: so that no two stand in
 * one place. */
struct classifier_entry {
	struct fields key;
	__u32 rule; /* << 8, and the group */
	__u32 told; /* with the rule; of a chain: line of its first row */
};
_Static_assert(sizeof(struct classifier_entry) == 64, "struct classifier_entry");

/* One of the rows that share a key, those of better rules first. The line after it is its mask. */
struct classifier_link {
	struct fields key;
	__u32 rule; /* << 8, and is there none after it? */
	__u32 told;
};
_Static_assert(sizeof(struct classifier_link) == 64, "struct classifier_link");
