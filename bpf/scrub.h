/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first line of defence: what is turned away before there is any state of it, by its source alone.
 *
 * Lists of prefixes are laid out by the control plane (compiler/prefix_index). The first bits of an address are its
 * granule. Of granules in which anything is listed three bits stand in one word of a filter, so one look there is all that
 * nearly everybody else pays. The others are looked up in a hash table of buckets: a granule that is listed as a whole says
 * by which list, any other names its ranges of addresses. Ranges do not overlap: where lists do, the entry that lives longest
 * counts. */
#pragma once

#define PREFIX_PROBES 8 /* as many buckets as the compiler lets a granule run over to */
#define PREFIX_STEPS 24 /* ranges that are halved so often */

/* One array of lines each. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SCRUB_PLACES);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, 64);
		});
} prefixes_v1 SEC(".maps");

enum scrub_list {
	SCRUB_BLOCK,
	SCRUB_ALLOW,
};

always_inline __u32 scrub_place(__u32 epoch, enum scrub_list list, __u32 family)
{
	return (epoch & 1) << 2 | list << 1 | (family == FAMILY_IPV6);
}

always_inline const struct prefix_index *prefix_index(__u32 place)
{
	return &scrub_v1.index[place & (SCRUB_PLACES - 1)];
}

always_inline void *prefix_line(void *lines, __u32 line)
{
	return bpf_map_lookup_elem(lines, &line);
}

always_inline bool prefix_lives(__u32 expires)
{
	__u32 time = bpf_jiffies64() >> PREFIX_TIME_SHIFT;

	return !expires || (__s32)(expires - time) > 0;
}

always_inline __u64 prefix_hash(const struct prefix_index *index, __u64 upper)
{
	return mix64_again(mix64(upper >> (index->shift & 63) ^ index->seed));
}

/* Can anything be listed in the granule of an address? */
always_inline bool prefix_may_be(__u32 place, __u64 upper)
{
	void *lines = bpf_map_lookup_elem(&prefixes_v1, &place);

	if (!lines)
		return false;
	const struct prefix_index *index = prefix_index(place);
	__u64 hash = prefix_hash(index, upper);
	__u32 word = (hash >> 32) * index->words >> 32;
	const __u64 *filter = prefix_line(lines, word / FILTER_WORDS);
	__u64 bits = 1ull << (hash & 63) | 1ull << (hash >> 6 & 63) | 1ull << (hash >> 12 & 63);

	return filter && !(bits & ~filter[word & (FILTER_WORDS - 1)]);
}

/* The list + 1 of the range that an address of IPv4 stands in; 0: of none. The same for IPv6 below. */
__noinline __u32 prefix_in4(__u32 place, __u32 at, __u32 count, __u32 address)
{
	void *lines = bpf_map_lookup_elem(&prefixes_v1, &place);
	__u32 low = at, high = at + count, begin = prefix_index(place)->range_line;

	if (!lines)
		return 0;
	for (int step = 0; step < PREFIX_STEPS && low < high; step++) {
		__u32 middle = low + (high - low) / 2;
		const struct prefix_range4 *ranges = prefix_line(lines, begin + middle / RANGES_OF_LINE);
		if (!ranges)
			return 0;
		const struct prefix_range4 *r = &ranges[middle & (RANGES_OF_LINE - 1)];
		if (address < r->first)
			high = middle;
		else if (address > r->last)
			low = middle + 1;
		else
			return prefix_lives(r->expires) ? r->list + 1 : 0;
	}
	return 0;
}

always_inline bool prefix_below(__u64 a_high, __u64 a_low, const __u64 *b)
{
	return a_high < b[0] || (a_high == b[0] && a_low < b[1]);
}

always_inline bool prefix_above(__u64 a_high, __u64 a_low, const __u64 *b)
{
	return a_high > b[0] || (a_high == b[0] && a_low > b[1]);
}

__noinline __u32 prefix_in6(__u64 place_at, __u32 count, __u64 upper, __u64 lower)
{
	__u32 place = place_at >> 32, low = place_at, high = low + count, begin = prefix_index(place)->range_line;
	void *lines = bpf_map_lookup_elem(&prefixes_v1, &place);

	if (!lines)
		return 0;
	for (int step = 0; step < PREFIX_STEPS && low < high; step++) {
		__u32 middle = low + (high - low) / 2;
		const struct prefix_range6 *r = prefix_line(lines, begin + middle);
		if (!r)
			return 0;
		if (prefix_below(upper, lower, r->first))
			high = middle;
		else if (prefix_above(upper, lower, r->last))
			low = middle + 1;
		else
			return prefix_lives(r->expires) ? r->list + 1 : 0;
	}
	return 0;
}

always_inline __u32 prefix_among(const struct prefix_granule *g, __u32 place, __u64 upper, __u64 lower)
{
	if (g->count & PREFIX_WHOLE)
		return prefix_lives(g->at) ? (g->count & ~PREFIX_WHOLE) + 1 : 0;
	return place & 1 ? prefix_in6((__u64)place << 32 | g->at, g->count, upper, lower) :
			   prefix_in4(place, g->at, g->count, upper >> 32);
}

/* The list + 1 that an address is in; 0: in none. */
__noinline __u32 prefix_find(__u32 place, __u64 upper, __u64 lower)
{
	const struct prefix_index *index = prefix_index(place);
	void *lines = bpf_map_lookup_elem(&prefixes_v1, &place);
	__u64 granule = upper >> (index->shift & 63);
	__u32 home = (prefix_hash(index, upper) >> 32) * index->buckets >> 32;

	if (!lines)
		return 0;
	for (__u32 probe = 0; probe < PREFIX_PROBES && probe < index->probes; probe++) {
		const struct prefix_granule *bucket = prefix_line(lines, index->bucket_line + home + probe);
		if (!bucket)
			return 0;
		for (int slot = 0; slot < GRANULES_OF_BUCKET; slot++)
			if (bucket[slot].granule == granule && bucket[slot].count)
				return prefix_among(&bucket[slot], place, upper, lower);
	}
	return 0;
}

always_inline void scrub_count(__u32 list, __u32 length)
{
	struct counter *counter = bpf_map_lookup_elem(&listed_v1, &list);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

always_inline bool scrub_is_on(void)
{
	return READ_ONCE(scrub_v1.on);
}

/* Every packet pays for this, and a function that returns costs as much as all the rest: so the filter is asked first. Whether
 * somebody is allowed is asked of who is blocked alone. */
always_inline bool scrub_drops(const struct packet *p)
{
	const union addr *src = &p->tuple.src;

	if (!scrub_is_on())
		return false;
	__u32 place = scrub_place(epoch_now(), SCRUB_BLOCK, p->tuple.family), list;
	__u64 upper = p->tuple.family == FAMILY_IPV4 ? (__u64)bpf_ntohl(src->v4) << 32 : bpf_be64_to_cpu(src->quads[0]);
	__u64 lower = p->tuple.family == FAMILY_IPV4 ? 0 : bpf_be64_to_cpu(src->quads[1]);
	if (!prefix_may_be(place, upper) || !(list = prefix_find(place, upper, lower)))
		return false;
	place |= SCRUB_ALLOW << 1;
	__u32 allowed = prefix_index(place)->words ? prefix_find(place, upper, lower) : 0;
	scrub_count((allowed ? allowed : list) - 1, p->length);
	return !allowed;
}
