/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services: is the packet addressed to one, and which endpoint takes it? */
#pragma once

never_inline const struct service *service_lookup(__u32 epoch, const struct tuple *t)
{
	struct service_key key = {
		.epoch = epoch, .port = t->dport, .proto = t->proto, .family = t->family, .address = t->dst};

	return bpf_map_lookup_elem(&service_v2, &key);
}

/* Is it the address of a service or of an endpoint? */
always_inline bool service_claims(__u32 epoch, __u8 family, const union addr *address)
{
	struct claim key = {.epoch = epoch, .family = family, .address = *address};

	return bpf_map_lookup_elem(&claim_v1, &key);
}

/* Maglev and round-robin differ in who fills the wheel (compiler/) and in how a slot is picked. */
always_inline __u32 service_slot(const struct service *service, const struct tuple *t)
{
	if (service->algorithm == ALGORITHM_ROUND_ROBIN) {
		__u32 *cursor = bpf_map_lookup_elem(&cursor_v1, &service->id);
		return cursor ? __sync_fetch_and_add(cursor, 1) % service->wheel_slots : 0;
	}
	return tuple_hash(t) % service->wheel_slots;
}

/* The endpoint that takes a new flow, its id in *id; NULL when there is none. */
always_inline const struct endpoint *service_endpoint(const struct service *service, const struct tuple *t, __u32 *id)
{
	if (!service->wheel_slots)
		return NULL;
	__u32 slot = service->wheel_base + service_slot(service, t);
	const __u32 *entry = bpf_map_lookup_elem(&wheel_v1, &slot);
	if (!entry)
		return NULL;
	*id = *entry;
	const struct endpoint *endpoint = bpf_map_lookup_elem(&endpoint_v1, id);
	return endpoint && endpoint->state == ENDPOINT_ACTIVE ? endpoint : NULL;
}

/* May a connection go on to the endpoint it was opened to? Ids are given out again, so what counts is that the rows still
 * say what its entries do. e: both, as flow_find_both() has found them. */
always_inline bool service_keeps(__u32 epoch, const struct ending *e)
{
	const struct peek *opening = e->entry.state & FLOW_REPLY ? &e->pair : &e->entry;

	if (!(opening->state & FLOW_HAS_SERVICE))
		return true;
	__u32 id = opening->rare; /* on the stack: as a key, kernel 6.1 takes no memory that a function was given */
	const struct endpoint *endpoint = bpf_map_lookup_elem(&endpoint_v1, &id);
	const struct service *service = service_lookup(epoch, &opening->key);

	return endpoint && service && endpoint->state != ENDPOINT_FREE && endpoint->service == service->id &&
	       endpoint->port == opening->leaves.dport && addr_equal(&endpoint->address, &opening->leaves.dst);
}

always_inline void service_count(__u32 endpoint)
{
	struct opened *opened = bpf_map_lookup_elem(&opened_v1, &endpoint);

	if (opened)
		opened->connections++;
}
