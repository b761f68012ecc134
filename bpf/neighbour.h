/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Linux finds out that a neighbour has moved to another link address, or is gone, because it sends to it: of one that it has not
 * heard of for a while it asks again (net/core/neighbour.c: reachable, delay, probe). What is carried around it it does not see,
 * so now and then a packet to each neighbour goes by Linux.
 */
#pragma once

#define NEIGHBOUR_MS 3000 /* Linux asks when it was used within five seconds (delay_first_probe_time) */

/* Is it time for one to s->route's next hop? Whoever is told so has to leave his packet to Linux. Neighbours that share a row take it
 * from each other, and Linux gets some packets more. */
__noinline int neighbour_due(void)
{
	struct scratch *s = scratch_get();

	if (!s)
		return 0;
	const struct bpf_fib_lookup *fib = &s->route.fib; /* IPv4: the first word alone, the others are 0 */
	__u64 mixed = mix64((__u64)fib->ipv6_dst[0] << 32 | fib->ipv6_dst[1]);
	mixed = mix64_again(mixed + ((__u64)fib->ipv6_dst[2] << 32 | fib->ipv6_dst[3]));
	mixed = mix64(mixed + ((__u64)fib->ifindex << 8 | fib->family));
	__u32 row = mixed & (NEIGHBOUR_ROWS - 1), tag = mixed >> 32;
	__u64 *sent = bpf_map_lookup_elem(&neighbour_v1, &row);
	if (!sent)
		return 0;
	__u64 was = READ_ONCE(*sent);
	if (was >> 32 == tag && now() - (__u32)was <= ticks(NEIGHBOUR_MS))
		return 0;
	*(volatile __u64 *)sent = (__u64)tag << 32 | now();
	return was != 0; /* those before the first went by it */
}
