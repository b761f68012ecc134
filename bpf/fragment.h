/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Later fragments carry no ports: the first one of a datagram leaves them here. A fragment that overtakes
 * the first of its datagram cannot be told, and is not ours to keep. */
#pragma once

always_inline struct fragment_key fragment_key(const struct parsed *p)
{
	struct fragment_key key = {.src = p->tuple.src,
				   .dst = p->tuple.dst,
				   .id = p->fragment_id,
				   .proto = p->tuple.family == FAMILY_IPV4 ? p->tuple.proto : 0,
				   .family = p->tuple.family};
	return key;
}

always_inline void fragment_store(struct packet *p)
{
	struct fragment_key key = fragment_key(packet_parsed(p));
	struct fragment row = {
		.sport = p->tuple.sport, .dport = p->tuple.dport, .proto = p->tuple.proto, .seen = now()};

	bpf_map_update_elem(&fragment_v1, &key, &row, BPF_ANY);
}

/* Gives a later fragment the ports of its datagram, and the protocol behind all its headers. */
always_inline bool fragment_load(struct packet *p)
{
	struct fragment_key key = fragment_key(packet_parsed(p));
	const struct fragment *row = bpf_map_lookup_elem(&fragment_v1, &key);

	if (!row || now() - row->seen > FRAGMENT_LIFETIME_MS / 1000 * cw_hz)
		return false;
	p->tuple.sport = row->sport;
	p->tuple.dport = row->dport;
	p->tuple.proto = row->proto;
	return true;
}

/* A datagram that was refused: nothing of it passes. */
never_inline void fragment_forget(struct packet *p)
{
	struct fragment_key key = fragment_key(packet_parsed(p));

	if (p->fragment)
		bpf_map_delete_elem(&fragment_v1, &key);
}

/* Does a service's address or an endpoint's stand at either end? */
always_inline bool fragment_of_service(const struct packet *p, const struct config *config)
{
	return config->services && (service_claims(config->epoch, p->tuple.family, &p->tuple.dst) ||
				    service_claims(config->epoch, p->tuple.family, &p->tuple.src));
}

/* Does anything of clearway's own claim a packet of which no more than its addresses can be told? Linux may have what
 * belongs to it; what is translated must not leave half-translated. */
always_inline bool fragment_claimed(struct packet *p, struct scratch *s)
{
	const struct config *config = config_of(epoch_now());

	if (!config)
		return false;
	if (config->firewall || fragment_of_service(p, config))
		return true;
	if (!config->nats)
		return false;
	s->forward.leaves = p->tuple;
	route_lookup(p, s);
	return route_found(&s->route) && nat_lookup(config->epoch, s->route.fib.ifindex, &p->tuple);
}
