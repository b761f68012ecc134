/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every table of the data path. Sizes given as 1 are set by the control plane before loading, from the
 * configuration (conntrack.max_flows, limits). All are pinned by name and shared by every program; the
 * name carries the layout's version. Nothing but table.h touches flow4_v3 and flow6_v3. */
#pragma once

#define TABLE(NAME, TYPE, KEY, VALUE, ENTRIES, FLAGS) \
	struct { \
		__uint(type, TYPE); \
		__type(key, KEY); \
		__type(value, VALUE); \
		__uint(max_entries, ENTRIES); \
		__uint(map_flags, FLAGS); \
	} NAME SEC(".maps")

/* A table of one row that programs read as a variable: at a known place, where a lookup would take a dozen instructions and could
 * seem to fail. Its row is what the control plane has written, not what it begins as. */
#define VARIABLE(NAME, VALUE) VALUE NAME SEC(".data." #NAME)

/* Flows: the tables themselves are made by the control plane, of any size, and can be exchanged for others while
 * packets go through them. Mapped into memory by readers, and so that entries are aligned to cache lines. */
#define FLOW_TABLE(NAME, BUCKET) \
	struct { \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); \
		__uint(max_entries, FLOW_TABLES); \
		__type(key, __u32); \
		__array( \
			values, struct { \
				__uint(type, BPF_MAP_TYPE_ARRAY); \
				__uint(max_entries, 1); \
				__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP); \
				__uint(key_size, sizeof(__u32)); \
				__uint(value_size, sizeof(BUCKET)); \
			}); \
	} NAME SEC(".maps")

FLOW_TABLE(flow4_v3, struct flow4_bucket);
FLOW_TABLE(flow6_v3, struct flow6_bucket);
VARIABLE(flows_v3, struct flow_tables);
TABLE(carried_v1, BPF_MAP_TYPE_HASH, struct carried_key, struct carried, 65536, BPF_F_NO_PREALLOC);
TABLE(ended_v2, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct opened, FLOW_END_COUNT, 0); /* index: enum flow_end */
TABLE(lost_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct opened, 1, 0);		     /* records there was no room for */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} records_v1 SEC(".maps"); /* struct flow_record, while flow_tables.records is set */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} adopted_v1 SEC(
	".maps"); /* struct adopted_record: the daemon adds up what was carried past rules; what it was away for, too */
TABLE(unaccounted_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, 1,
      0); /* carried, and no record of it had room */
TABLE(egress_v2, BPF_MAP_TYPE_ARRAY, __u32, struct egress, EGRESS_ROWS, 0);
TABLE(trust_v2, BPF_MAP_TYPE_ARRAY, __u32, struct trust, 1, 0);
TABLE(mangle_v1, BPF_MAP_TYPE_ARRAY, __u32, struct mangle, MANGLES, 0);	  /* index: FLOW_MANGLE */
TABLE(marking_v1, BPF_MAP_TYPE_ARRAY, __u32, struct marking, 2, 0);	  /* by TRUST_OTHER */
TABLE(refused_v1, BPF_MAP_TYPE_ARRAY, __u32, __u64, REFUSED_ROWS, 0);	  /* adopted.h, struct refused */
TABLE(neighbour_v1, BPF_MAP_TYPE_ARRAY, __u32, __u64, NEIGHBOUR_ROWS, 0); /* tag << 32 | jiffies: neighbour.h */
TABLE(inbound_v1, BPF_MAP_TYPE_LRU_HASH, struct tuple, struct inbound, 16384, 0);
TABLE(fragment_v1, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment, 4096, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events_v1 SEC(".maps"); /* struct firewall_event, while flow_tables.events is set */

/* configuration */
VARIABLE(active_v2, struct active);
TABLE(config_v4, BPF_MAP_TYPE_ARRAY, __u32, struct config, 2, 0); /* index: epoch & 1 */
TABLE(service_v2, BPF_MAP_TYPE_HASH, struct service_key, struct service, 1, BPF_F_NO_PREALLOC);
TABLE(claim_v1, BPF_MAP_TYPE_HASH, struct claim, __u32, 1, BPF_F_NO_PREALLOC); /* set; the value is 1 */
TABLE(origin_v2, BPF_MAP_TYPE_HASH, struct service_key, struct origin, 1, BPF_F_NO_PREALLOC);
TABLE(full_v1, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1,
      0); /* jiffies, when a connection last went on without an entry; 0: none has */
TABLE(wheel_v1, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);	      /* slot -> endpoint id */
TABLE(endpoint_v1, BPF_MAP_TYPE_ARRAY, __u32, struct endpoint, 1, 0); /* index: endpoint id */
TABLE(nat_v2, BPF_MAP_TYPE_LPM_TRIE, struct nat_key, struct nat, 1, BPF_F_NO_PREALLOC);
TABLE(rule_v1, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);	 /* the control plane's: RULE_* in their order */
TABLE(named_v1, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, 0); /* index: counter; made of the name of the rule that has it */

/* lists of prefixes */
VARIABLE(scrub_v1, struct scrubbing);
TABLE(list_v1, BPF_MAP_TYPE_ARRAY, __u32, __u64, 2 * LISTS, 0); /* epoch & 1, list: made of its name; 0: none */
TABLE(listed_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, LISTS,
      0); /* index: list; what it has decided about */

/* mirror of the kernel's devices */
TABLE(device_v1, BPF_MAP_TYPE_HASH, __u32, struct device, 4096, BPF_F_NO_PREALLOC);
TABLE(vlan_v1, BPF_MAP_TYPE_HASH, struct vlan_key, struct vlan, 4096, BPF_F_NO_PREALLOC);
TABLE(port_v1, BPF_MAP_TYPE_ARRAY, __u32, struct port, PORT_SLOTS, 0);

/* statistics and limits */
TABLE(counter_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, REASON_COUNT, 0); /* index: enum reason */
TABLE(received_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, 1, 0);	      /* every packet, on arrival */
TABLE(cursor_v1, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);		 /* index: service id; round-robin position */
TABLE(opened_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct opened, 1, 0); /* index: endpoint id */
/* One after the other: a per-CPU array has a pointer to each, in another page. Index: CPU * config.counters + counter. */
TABLE(judged_v1, BPF_MAP_TYPE_ARRAY, __u32, struct judged, 1, 0);
TABLE(unheard_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct opened, 1, 0); /* firewall events there was no room for */
TABLE(answer_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct answer_bucket, 1, 0);
