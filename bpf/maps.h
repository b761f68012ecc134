/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every table of the data path. Sizes given as 1 are set by the control plane before loading, from the
 * configuration (conntrack.max_flows, limits). All are pinned by name and shared by every program; the
 * name carries the layout's version. Nothing but flow.h touches flow4_v1 and flow6_v1. */
#pragma once

#define TABLE(NAME, TYPE, KEY, VALUE, ENTRIES, FLAGS) \
	struct { \
		__uint(type, TYPE); \
		__type(key, KEY); \
		__type(value, VALUE); \
		__uint(max_entries, ENTRIES); \
		__uint(map_flags, FLAGS); \
	} NAME SEC(".maps")

/* flows: an entry is allocated when it is born, so that an empty table costs no memory */
TABLE(flow4_v1, BPF_MAP_TYPE_HASH, struct flow4_key, struct flow, 1, BPF_F_NO_PREALLOC);
TABLE(flow6_v1, BPF_MAP_TYPE_HASH, struct flow6_key, struct flow, 1, BPF_F_NO_PREALLOC);
TABLE(inbound_v1, BPF_MAP_TYPE_LRU_HASH, struct tuple, struct inbound, 16384, 0);
TABLE(fragment_v1, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment, 4096, 0);

/* configuration */
TABLE(active_v1, BPF_MAP_TYPE_ARRAY, __u32, struct active, 1, 0);
TABLE(config_v1, BPF_MAP_TYPE_ARRAY, __u32, struct config, 2, 0); /* index: epoch & 1 */
TABLE(service_v1, BPF_MAP_TYPE_HASH, struct service_key, struct service, 1, BPF_F_NO_PREALLOC);
TABLE(claim_v1, BPF_MAP_TYPE_HASH, struct claim, __u32, 1, BPF_F_NO_PREALLOC); /* set; the value is 1 */
TABLE(wheel_v1, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);		       /* slot -> endpoint id */
TABLE(endpoint_v1, BPF_MAP_TYPE_ARRAY, __u32, struct endpoint, 1, 0);	       /* index: endpoint id */
TABLE(nat_v1, BPF_MAP_TYPE_LPM_TRIE, struct nat_key, struct nat, 1, BPF_F_NO_PREALLOC);

/* mirror of the kernel's devices */
TABLE(device_v1, BPF_MAP_TYPE_HASH, __u32, struct device, 4096, BPF_F_NO_PREALLOC);
TABLE(vlan_v1, BPF_MAP_TYPE_HASH, struct vlan_key, struct vlan, 4096, BPF_F_NO_PREALLOC);
TABLE(port_v1, BPF_MAP_TYPE_ARRAY, __u32, struct port, PORT_SLOTS, 0);

/* statistics and limits */
TABLE(counter_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, REASON_COUNT, 0); /* index: enum reason */
TABLE(received_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, 1, 0);	      /* every packet, on arrival */
TABLE(cursor_v1, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);		 /* index: service id; round-robin position */
TABLE(opened_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct opened, 1, 0); /* index: endpoint id */
TABLE(answer_v1, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct answer_bucket, 1, 0);
