/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The configuration that counts now. */
#pragma once

/* Kept in registers: the compiler would thread its jumps through the loads, and the verifier would walk everything behind
 * them twice. */
always_inline __u32 epoch_now(void)
{
	__u32 epoch = READ_ONCE(active_v2.epoch);

	keep_register(epoch);
	return epoch;
}

always_inline __u32 mirror_now(void)
{
	__u32 mirror = READ_ONCE(active_v2.mirror);

	keep_register(mirror);
	return mirror;
}

always_inline const struct config *config_of(__u32 epoch)
{
	__u32 index = epoch & 1;

	return bpf_map_lookup_elem(&config_v4, &index);
}

/* Is there anything that could claim a packet? Otherwise all is Linux' own. */
always_inline bool config_claims(const struct config *config)
{
	return config->services | config->nats | config->origins | config->firewall;
}
