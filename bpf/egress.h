/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The devices that packets leave by. A flow names a row of egress_v2; the row is filled in, with its generation, by whoever
 * resolves a next hop through that device. A row of an older generation is nobody's any more: what names it goes
 * through the first-packet stages once, and another device may have its place. */
#pragma once

#define EGRESS_TRIES 4
#define EGRESS_NONE EGRESS_ROWS
#define EGRESS_OF_FAMILY (EGRESS_ROWS / 2)

/* The row, copied; false when it is not what it was when the flow was resolved. */
always_inline bool egress_read(__u32 index, __u32 stamp, struct egress *out)
{
	const struct egress *row = bpf_map_lookup_elem(&egress_v2, &index);

	if (!row)
		return false;
	*out = *row;
	compiler_barrier();
	return out->stamp == stamp && READ_ONCE(row->stamp) == stamp;
}

/* Do both name the same device, for the same packets? */
always_inline bool egress_alike(const struct egress *a, const struct egress *b)
{
	return a->route == b->route && a->mark == b->mark && a->family == b->family;
}

always_inline bool egress_equal(const struct egress *a, const struct egress *b)
{
	return a->stamp == b->stamp && egress_alike(a, b) && a->ifindex == b->ifindex &&
	       a->vlan_outer == b->vlan_outer && a->vlan_inner == b->vlan_inner &&
	       *(__u32 *)a->smac == *(__u32 *)b->smac && *(__u16 *)(a->smac + 4) == *(__u16 *)(b->smac + 4) &&
	       a->xdp_transmit == b->xdp_transmit;
}

/* The row of a device at the n-th try; marks are spread. Each family has a half of its own, in which stamps can be compared. */
always_inline __u32 egress_place(const struct egress *e, __u32 n)
{
	__u32 row = (e->route + (e->mark * 0x9e3779b1u >> 16) + n) % EGRESS_OF_FAMILY;

	return e->family == FAMILY_IPV4 ? row : EGRESS_OF_FAMILY + row;
}

/* The row of this device, brought up to date; EGRESS_NONE: its places are taken by others in use. */
always_inline __u32 egress_store(const struct egress *wanted)
{
#pragma clang loop unroll(full) /* Linux 6.1 takes no loop that is entered at its end */
	for (__u32 i = 0; i < EGRESS_TRIES; i++) {
		__u32 index = egress_place(wanted, i);
		struct egress *row = bpf_map_lookup_elem(&egress_v2, &index);
		if (!row || (!egress_alike(row, wanted) && row->stamp == wanted->stamp))
			continue;
		if (!egress_equal(row, wanted)) {
			__sync_lock_test_and_set(&row->stamp, 0);
			row->route = wanted->route;
			row->ifindex = wanted->ifindex;
			row->vlan_outer = wanted->vlan_outer;
			row->vlan_inner = wanted->vlan_inner;
			__builtin_memcpy(row->smac, wanted->smac, ETH_ALEN);
			row->xdp_transmit = wanted->xdp_transmit;
			row->family = wanted->family;
			row->mark = wanted->mark;
			__sync_lock_test_and_set(&row->stamp, wanted->stamp);
		}
		return index;
	}
	return EGRESS_NONE;
}
