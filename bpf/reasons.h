/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every packet that reaches a hook ends under exactly one of these. The first word is the verdict:
 * FORWARD (sent on by the data path), ANSWER (replied to by the data path), PUNT (handed to Linux),
 * DROP. The control plane reads names and numbers from BTF. Add at the end of a group. */
#pragma once

enum reason {
	/* sent on */
	REASON_FORWARD_FLOW = 0, /* an established flow, one lookup */
	REASON_FORWARD_NEW,	 /* opened a flow */
	REASON_FORWARD_STATE, /* of a known flow, changed or asked for its state: SYN, FIN, RST, a first acknowledgement */
	REASON_FORWARD_RESOLVED,   /* of a known flow whose next hop was resolved again */
	REASON_FORWARD_NEIGHBOUR,  /* through the kernel's neighbour table, which resolves the address */
	REASON_FORWARD_FRAGMENT,   /* a later fragment of a known flow */
	REASON_FORWARD_STATELESS,  /* of a connection that found no place in the table, balanced without an entry */
	REASON_FORWARD_ICMP_ERROR, /* an ICMP error about a translated flow, translated */
	REASON_FORWARD_ADOPTED,	   /* learned a connection from Linux' conntrack */

	/* answered */
	REASON_ANSWER_TTL_EXCEEDED = 32,
	REASON_ANSWER_TOO_BIG,
	REASON_ANSWER_RESET,
	REASON_ANSWER_REJECTED, /* by a firewall rule, with a reset or an ICMP error */

	/* handed to Linux, untouched but for PUNT_TO_FRAGMENT */
	REASON_PUNT_NOT_IP = 64,  /* ARP, LLDP, ... */
	REASON_PUNT_OTHER_HOST,	  /* not addressed to this machine's link address */
	REASON_PUNT_VLAN_UNKNOWN, /* no device of that VLAN */
	REASON_PUNT_IP_OPTIONS,
	REASON_PUNT_MULTICAST, /* to or from there; or broadcast, loopback, link-local: neighbour discovery, ... */
	REASON_PUNT_PROTOCOL,  /* a layer 4 clearway does not speak */
	REASON_PUNT_ICMP,      /* ICMP that is neither echo nor an error about a known flow */
	REASON_PUNT_FRAGMENT,  /* of a flow clearway does not know */
	REASON_PUNT_NOT_OURS, /* no service and no NAT rule claims it; of a connection that Linux has not been asked about yet, too */
	REASON_PUNT_LOCAL,    /* to the machine itself, or not forwardable by routing */
	REASON_PUNT_TTL,      /* untranslated, expired: Linux answers */
	REASON_PUNT_UNPROVEN, /* Linux' rules have changed and are not proved yet, or cannot be */
	REASON_PUNT_KEPT,     /* a rule that only Linux can follow may meet it */
	REASON_PUNT_ADOPTED, /* of an adopted flow, and Linux' to judge: SYN, FIN, RST, fragments, expired, too large */
	REASON_PUNT_TO_FRAGMENT, /* translated, over MTU, may be fragmented: Linux fragments; it gets the packet by `lo` */
	REASON_PUNT_MALFORMED, /* an extension, TCP, UDP or ICMP header cut short or impossible, and nothing claims it */
	REASON_PUNT_NEIGHBOUR, /* of an adopted flow, every few seconds: Linux shall go on asking for the next hop */

	/* dropped */
	REASON_DROP_ETHERNET_SHORT = 128,
	REASON_DROP_VLAN_SHORT,
	REASON_DROP_IP_HEADER,	      /* version, header length or checksum field impossible */
	REASON_DROP_IP_LENGTH,	      /* total length disagrees with the frame */
	REASON_DROP_EXTENSION_HEADER, /* claimed; IPv6: cut short, or more than EXTENSION_HEADERS_MAX */
	REASON_DROP_L4_SHORT,	      /* claimed; TCP, UDP or ICMP header cut short */
	REASON_DROP_L4_HEADER,	      /* claimed; TCP data offset or UDP length impossible */
	REASON_DROP_NO_ENDPOINT,      /* the service has nobody to send to */
	REASON_DROP_ENDPOINT_GONE,    /* of a connection to an endpoint that was removed */
	REASON_DROP_NO_ROUTE,	      /* translated, and routing has no way there */
	REASON_DROP_NO_NEIGHBOUR,     /* the next hop's link address is not known and cannot be asked for here */
	REASON_DROP_NO_EGRESS,	      /* XDP cannot transmit through that device and TC could not take over */
	REASON_DROP_NO_ADDRESS,	      /* masquerade through a device without an address */
	REASON_DROP_NO_PORT,	      /* no free source port towards that destination */
	REASON_DROP_TABLE_FULL,
	REASON_DROP_MIDSTREAM,	      /* TCP without SYN and without flow, by policy */
	REASON_DROP_FRAGMENT_UNKNOWN, /* to a translated address, before its first fragment */
	REASON_DROP_RATE_LIMITED,     /* an answer was due and the limit of answers reached */
	REASON_DROP_NO_ANSWER,	      /* expired or too big, and of a kind that gets no ICMP error (RFC 1122 3.2.2) */
	REASON_DROP_STAGE_MISSING,    /* a tail call failed: the program was loaded incompletely */
	REASON_DROP_REWRITE_FAILED,   /* the kernel refused to change the packet */
	REASON_DROP_ANSWER_FAILED,    /* no room to build the answer, or no address to send it from */
	REASON_DROP_FIREWALL,	      /* by a rule, or by the firewall's default */
	REASON_DROP_UNPROVEN,	      /* clearway's own, while Linux' rules that have changed are not proved yet */
	REASON_DROP_KEPT, /* clearway's own, which a rule of Linux' keeps by now: until a packet of its client hands it over */
	REASON_DROP_BLOCKLIST, /* its source is in a list of scrub.blocklists, and in none of scrub.allowlists */

	REASON_COUNT = 192,
};
