/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The configuration that counts now. */
#pragma once

always_inline struct active active_now(void)
{
	__u32 zero = 0;
	const struct active *active = bpf_map_lookup_elem(&active_v1, &zero);
	struct active none = {};

	return active ? *active : none;
}

always_inline const struct config *config_of(__u32 epoch)
{
	__u32 index = epoch & 1;

	return bpf_map_lookup_elem(&config_v3, &index);
}

/* Is there anything that could claim a packet? Otherwise all is Linux' own. */
always_inline bool config_claims(const struct config *config)
{
	return config->services | config->nats | config->origins | config->firewall;
}
