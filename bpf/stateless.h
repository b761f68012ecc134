/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections that find no place in the table, where the policy lets them go on without an entry (conntrack.when_full).
 * Maglev leads each of their packets to the same endpoint, and what an endpoint answers shows by its address and port
 * which service it answers for. */
#pragma once

/* The service that an endpoint's packet answers for; NULL: none, or more than one. */
never_inline const struct origin *stateless_origin(const struct config *config, const struct tuple *t)
{
	struct service_key key = {
		.epoch = config->epoch, .port = t->sport, .proto = t->proto, .family = t->family, .address = t->src};

	return config->origins ? bpf_map_lookup_elem(&origin_v2, &key) : NULL;
}

/* From now on packets of endpoints are looked at. */
always_inline void stateless_note(void)
{
	__u32 zero = 0, *full = bpf_map_lookup_elem(&full_v1, &zero), stamp = now() ?: 1;

	if (full && *full != stamp)
		*full = stamp;
}

/* May a connection still go on that was let through when there was no place? */
always_inline bool stateless_recently(const struct config *config)
{
	__u32 zero = 0;
	const __u32 *full = bpf_map_lookup_elem(&full_v1, &zero);

	return full && *full && now() - *full <= ticks(config->timeout_ms[TIMEOUT_TCP_ESTABLISHED]);
}
