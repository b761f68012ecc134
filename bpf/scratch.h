/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the program of one CPU is just working out: too large for the stack's 512 bytes, never seen by
 * anyone else, valid until the packet ends. */
#pragma once

enum fragment_kind {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER, /* no layer 4 header inside */
};

/* What parse.h reads from the packet. */
struct parsed {
	__u32 ifindex;	   /* the device as routing names it: the VLAN device for tagged frames */
	__u32 length;	   /* bytes of the frame */
	__u32 l3_offset;   /* from data */
	__u32 l4_offset;   /* from data */
	__u32 l4_header;   /* bytes of the TCP header, or of the eight that UDP and ICMP have */
	__u32 l3_length;   /* total length by the IP header */
	__u32 fragment_id; /* network order */
	__u16 vlan_outer;  /* VIDs, 0 = none */
	__u16 vlan_inner;
	__u8 tags; /* tags that stand in the frame */
	__u8 ttl;
	__u8 tos;
	__u8 dont_fragment;
	__u8 fragment; /* enum fragment_kind */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_echo; /* a request or a reply */
	struct tuple tuple;
};

/* Where a packet goes next (route.h). */
struct route {
	int result;  /* BPF_FIB_LKUP_RET_* */
	__u32 mark;  /* that packets leave with */
	__u8 family; /* theirs: that of the next hop, in fib, may be another one */
	struct bpf_fib_lookup fib;
	struct device device; /* of the egress; only `lower` where the mirror does not know it */
};

/* How the source of a new flow is chosen (nat.h). */
struct source {
	union addr address;
	__u16 port_min; /* host order; the port stays as it is where it lies in the range and is free */
	__u16 port_max;
	bool host; /* an address of this machine, whose own sockets must be respected */
};

/* The options of a SYN, being walked (tcp.h). */
struct tcp_options {
	__u8 bytes[64]; /* as many as fit a data offset of 15, and a power of two to bound an index by */
	__u32 at;
	__u32 end;
	__u32 scale; /* found: FLOW_SCALE, FLOW_SCALE_OFFERED */
};

/* What a segment says (tcp.h). */
struct segment {
	__u32 seq;
	__u32 ack;
	__u32 end; /* the sequence number after it */
	__u16 window;
	__u8 flags;
	__u8 pad;
	__u32 scale; /* of a SYN: FLOW_SCALE and FLOW_SCALE_OFFERED */
};

/* What is said about a connection besides its tuple. */
struct asked {
	__u32 ifindex_in;
	__u32 ifindex_out; /* 0: none */
	__u16 vlan;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 tos;
	__u8 local; /* to the machine itself */
	__u8 mark;  /* class of the connection's mark */
	__u8 pad;
};

/* What the firewall is asked, and what it says (firewall.h). */
struct judging {
	struct asked asked;
	struct fields before; /* as the packet that opens the connection arrives */
	struct fields after;  /* as it leaves */
	__u32 rule;	      /* out: RULE_* */
	__u32 row;	      /* out: of judged_v1 */
	__u32 epoch;
	__u8 family;
	__u8 known;	  /* the connection was accepted once */
	__u8 action;	  /* out: enum firewall_action */
	__u8 linux_knows; /* enum inbound_direction: the packet's, in Linux' conntrack */
};

/* What is found out about the first packet of a connection (opening.h). */
struct opening {
	__u32 endpoint;
	__u32 nat_id;
	bool service;	/* addressed to one */
	bool full_nat;	/* of that */
	bool stateless; /* that service keeps no state when there is no room for it */
	bool nat;	/* a rule claims its source */
	bool midstream; /* TCP, and not a SYN */
	bool answers;	/* an endpoint, for a connection without an entry (stateless.h) */
	bool to_linux;	/* it is carried by Linux */
	bool plain;	/* the firewall has accepted it, and nothing of it is translated */
	bool judged;	/* the firewall has accepted it, and not counted that */
	bool honours;	/* Linux' rules are to be asked */
};

/* One direction of a connection, as it passes this machine. */
struct passing {
	struct tuple arrives;
	struct tuple leaves;
	__u32 inside; /* ifindex by which it comes in, as routes name it */
	__u32 outside;
	__u32 mark; /* class of the connection's mark */
};

/* What of a connection's life Linux has not seen. */
enum life {
	LIFE_LINUX,    /* nothing: its timeout is Linux' own */
	LIFE_ANSWERED, /* packets of both directions */
	LIFE_ALONE,    /* packets of one, without answers */
};

/* What is found out about a connection of Linux' (adopt.h). */
struct adopting {
	__u32 trusted;	  /* enum trusted */
	__u32 reason;	  /* that it has if it is not adopted */
	__u32 life;	  /* enum life */
	__u32 masquerade; /* ifindex by which it is to leave; 0: any */
	__u32 mark;	  /* the connection's */
	__u32 class;	  /* of that */
	__u32 routed;	  /* with which mark its packets are routed */
	__u32 left;	  /* with which they leave */
	struct way way;
	__u32 mangle; /* what rules change in it: FLOW_MANGLE of its flow's state */
	__u8 reply;   /* the packet is of the direction that answers */
	__u8 told;    /* Linux tells when it deletes the connection */
	__u8 at_once; /* no other stage has been asked */
	__u8 soon;    /* its handshake is not over: the next packet may be of an established connection */
};

struct scratch {
	struct parsed parsed; /* from stage() to packet_restore() */
	struct route route;
	struct bpf_fib_lookup back; /* to the sender */
	int back_result;	    /* BPF_FIB_LKUP_RET_* */
	struct source source;
	struct birth forward; /* the two entries of a new flow; its tuples as the packet arrives and leaves */
	struct birth answer;  /* and as its reply does: the other way round */
	struct peek entry;    /* the packet's own */
	struct egress egress; /* the device it leaves by */
	bool stateless;	      /* entry.verdict is that of a connection without an entry */
	struct ending ending; /* a connection that makes way */
	struct segment segment;
	struct tcp_options options;
	struct judging judging;
	struct opening opening;
	struct adopting adopting;
	struct passing passing; /* rules are asked about it (views.h) */
	bool adopted;		/* the packet's flow is an adopted one that is to be asked about again */
	struct tuple quoted;	/* in an ICMP error */
	__u32 stray;		/* why the parser has left the packet to Linux (stray.h) */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

always_inline struct scratch *scratch_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}
