/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The yardstick for bpf/table.h: the same data path, but an entry is found by a kernel hash map, as before clearway had a
 * table of its own. Takes the place of table.h when clearway.bpf.c is compiled for the benchmark.
 *
 * Only hits: the benchmark fills both maps with copies of what the flow table holds, and nothing here opens, changes or
 * ends a flow. The stages behind the entry program are compiled with it, loaded and never reached. */
#pragma once

/* These three it has differently. */
#define flow_tables(...) bucket_tables(__VA_ARGS__)
#define table_find(...) bucket_find(__VA_ARGS__)
#define table_intact(...) bucket_intact(__VA_ARGS__)
#include "table.h"
#undef flow_tables
#undef table_find
#undef table_intact

struct hash4_key {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3]; /* hashed: always zero */
};
_Static_assert(sizeof(struct hash4_key) == 16, "struct hash4_key");

struct hash6_key {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3]; /* hashed: always zero */
};
_Static_assert(sizeof(struct hash6_key) == 40, "struct hash6_key");

TABLE(hash4, BPF_MAP_TYPE_HASH, struct hash4_key, struct flow4, 1, BPF_F_NO_PREALLOC);
TABLE(hash6, BPF_MAP_TYPE_HASH, struct hash6_key, struct flow6, 1, BPF_F_NO_PREALLOC);

static const struct flow_tables hash_tables = {.buckets4 = {1}, .buckets6 = {1}};
static struct flow_marks hash_marks;

/* A constant: what is known of the flow table is nothing that a hit has to read. */
always_inline const struct flow_tables *flow_tables(void)
{
	return &hash_tables;
}

always_inline void *hash_lookup(const struct tuple *t, const int family)
{
	if (family == FAMILY_IPV4) {
		struct hash4_key key = {
			.src = t->src.v4, .dst = t->dst.v4, .sport = t->sport, .dport = t->dport, .proto = t->proto};
		return bpf_map_lookup_elem(&hash4, &key);
	}
	struct hash6_key key = {.src = t->src, .dst = t->dst, .sport = t->sport, .dport = t->dport, .proto = t->proto};
	return bpf_map_lookup_elem(&hash6, &key);
}

always_inline bool table_find(const struct flow_tables *tables, const struct tuple *t, __u64 hash, const int family,
			      __u32 table, struct spot *spot)
{
	spot->flow = hash_lookup(t, family);
	spot->marks = &hash_marks;
	return spot->flow;
}

/* Nobody else writes the maps while the benchmark runs; a kernel hash would keep the memory until readers are done. */
always_inline bool table_intact(const struct spot *spot)
{
	return true;
}
