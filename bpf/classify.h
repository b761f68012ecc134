/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Classifiers: which is the first of many rules that a packet meets? What that costs depends on how many kinds of rules
 * there are, hardly on how many rules (docs/decisions/0006).
 *
 *   classify         the number of the first rule that the fields meet
 *
 * A rule asks for fields under a mask; all rules with the same mask are a group and stand in one hash table. So a look-up
 * would take as many probes as there are groups (Srinivasan, Suri and Varghese, "Packet classification using tuple space
 * search", 1999); but first each address and port is looked up by itself: the class that it falls into tells which
 * groups have a rule that it can meet at all. What is left in the classes of all four are a few groups. They are tried in the
 * order of their best rules, until none can be better than what was found.
 *
 * Ranges of ports and sets of prefixes or ports are no masks. They have numbers, labels; the class tells which labels its
 * members have, and groups that ask for labels are tried with each.
 *
 * Everything about one classifier stands in one array of cache lines that the control plane lays out (compiler/classifier)
 * and exchanges as a whole. */
#pragma once

#define CLASSIFIERS 16
#define CLASSIFY_NONE 0xffffffff
#define CLASSIFY_STEPS (1 << 23) /* as many as bpf_loop() can do; the compiler refuses what could take more */
#define LABELS_ASKED ((1 << CLASSIFIED_COUNT) - 1)
#define CLASSIFY_PROBES 4 /* buckets: the compiler makes it enough */
#define TREE_LEVELS 8	  /* for 9^8 - 1 boundaries */
#define TREE_KEYS 8

/* What is looked for, and how far that is. */
struct classify {
	__u32 instance;
	__u32 rule; /* the best that was found */
	__u32 group_lines;
	__u32 bucket_lines;
	__u32 bucket_count;
	__u32 entry_lines;
	__u64 seed;
	struct fields fields;
	struct fields key;		      /* of the group that is being tried */
	__u64 groups[CLASSIFIER_GROUPS / 64]; /* that are to be tried */
	__u32 rows[CLASSIFIED_COUNT];	      /* lines of the classes; 0: no rule asks for this field */
	__u32 at[CLASSIFIED_COUNT];	      /* labels to be tried next, in the present group */
	__u32 chain;			      /* line of the row to be compared next; 0: none */
};

/* One array of lines each. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, CLASSIFIERS);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, 64);
		});
} classifier_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct classify);
} classify_scratch SEC(".maps");

always_inline void *classifier_line(__u32 instance, __u32 line)
{
	void *lines = bpf_map_lookup_elem(&classifier_v1, &instance);

	return lines ? bpf_map_lookup_elem(lines, &line) : NULL;
}

/* a < b, without a branch: the borrow of their difference. */
always_inline __u64 classify_less(__u64 a, __u64 b)
{
	return ((~a & b) | (~(a ^ b) & (a - b))) >> 63;
}

/* Which child of a node a word belongs to. */
always_inline __u32 classify_child(const __u64 *keys, __u64 word)
{
	__u32 child = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < TREE_KEYS; i++) {
		child += classify_less(keys[i], word);
		keep_register(child); /* one after the other: all at once they would need a stack */
	}
	return child;
}

/* The same of a number in two words. Few boundaries have its upper one. */
always_inline __u32 classify_wide_child(const __u64 *upper, const __u64 *lower, __u64 high, __u64 low)
{
	__u32 child = classify_child(upper, high);

	if (child == TREE_KEYS || upper[child & (TREE_KEYS - 1)] != high)
		return child;
#pragma clang loop unroll(full)
	for (int i = 0; i < TREE_KEYS; i++) {
		__u64 other = upper[i] ^ high;
		child += (~other & (other - 1)) >> 63 & classify_less(lower[i], low);
		keep_register(child); /* one after the other: all at once they would need a stack */
	}
	return child;
}

/* The value of the interval that a word falls into. */
__u32 __attribute__((noinline)) classify_search(__u32 instance, __u32 at, __u64 word)
{
	const struct classifier_tree *tree = classifier_line(instance, at);
	__u32 node = 0, level = 0;
	const __u64 *keys;

	if (!tree)
		return 0;
	for (; level < TREE_LEVELS && level + 1 < tree->levels; level++) {
		keys = classifier_line(instance, tree->base[level] + node);
		if (!keys)
			return 0;
		node = node * (TREE_KEYS + 1) + classify_child(keys, word);
	}
	__u32 line = tree->base[level & (TREE_LEVELS - 1)] + 2 * node;
	keys = classifier_line(instance, line);
	const __u32 *values = classifier_line(instance, line + 1);

	return keys && values ? values[classify_child(keys, word) & 15] : 0;
}

/* The same, in a wide tree. */
__u32 __attribute__((noinline)) classify_wide_search(__u32 instance, __u32 at, __u64 high, __u64 low)
{
	const struct classifier_tree *tree = classifier_line(instance, at);
	__u32 node = 0, level = 0, line;
	const __u64 *upper, *lower;

	if (!tree)
		return 0;
	for (; level < TREE_LEVELS && level + 1 < tree->levels; level++) {
		line = tree->base[level] + 2 * node;
		upper = classifier_line(instance, line);
		lower = classifier_line(instance, line + 1);
		if (!upper || !lower)
			return 0;
		node = node * (TREE_KEYS + 1) + classify_wide_child(upper, lower, high, low);
	}
	line = tree->base[level & (TREE_LEVELS - 1)] + 3 * node;
	upper = classifier_line(instance, line);
	lower = classifier_line(instance, line + 1);
	const __u32 *values = classifier_line(instance, line + 2);

	return upper && lower && values ? values[classify_wide_child(upper, lower, high, low) & 15] : 0;
}

/* Where a walk through a tree has come to. */
struct walk_down {
	const struct classifier_tree *tree;
	__u32 node;
};

/* One level further down; false: the lowest one is reached. */
always_inline bool classify_down(__u32 instance, struct walk_down *w, __u32 level, __u64 word)
{
	if (level + 1 >= w->tree->levels)
		return false;
	const __u64 *keys = classifier_line(instance, w->tree->base[level & (TREE_LEVELS - 1)] + w->node);
	if (!keys)
		return false;
	w->node = w->node * (TREE_KEYS + 1) + classify_child(keys, word);
	return true;
}

always_inline __u32 classify_bottom(const struct walk_down *w)
{
	return w->tree->base[(w->tree->levels - 1) & (TREE_LEVELS - 1)] + 2 * w->node;
}

/* Two trees at once, that neither waits for the other's cache lines; the second one's value in the upper half. */
__u64 __attribute__((noinline)) classify_search_both(__u32 instance, __u32 first, __u64 word, __u32 second, __u64 other)
{
	struct walk_down a = {.tree = classifier_line(instance, first)},
			 b = {.tree = classifier_line(instance, second)};

	if (!a.tree || !b.tree)
		return 0;
	for (__u32 level = 0; level < TREE_LEVELS; level++) {
		bool further = classify_down(instance, &a, level, word);
		further |= classify_down(instance, &b, level, other);
		if (!further)
			break;
	}
	const __u64 *keys = classifier_line(instance, classify_bottom(&a));
	const __u64 *others = classifier_line(instance, classify_bottom(&b));
	if (!keys || !others)
		return 0;
	__u32 child = classify_child(keys, word), sibling = classify_child(others, other);
	const __u32 *values = classifier_line(instance, classify_bottom(&a) + 1);
	const __u32 *found = classifier_line(instance, classify_bottom(&b) + 1);
	return values && found ? values[child & 15] | (__u64)found[sibling & 15] << 32 : 0;
}

always_inline __u32 classify_class(__u32 instance, __u32 tree, __u64 high, __u64 low)
{
	if (!tree)
		return 0;
	return tree & CLASSIFIER_WIDE ? classify_wide_search(instance, tree & ~CLASSIFIER_WIDE, high, low) :
					classify_search(instance, tree, high);
}

always_inline void classify_keep(struct classify *c, const enum classified field, __u32 row)
{
	c->rows[field] = row;
	c->at[field] = 0;
	if (!row)
		return;
	const struct classifier_class *class = classifier_line(c->instance, row);
	if (!class)
		return;
	for (int i = 0; i < CLASSIFIER_GROUPS / 64; i++)
		c->groups[i] &= class->groups[i];
}

/* The groups that may have a rule for these fields. */
never_inline bool classify_begin(struct classify *c)
{
	const struct classifier_head *head = classifier_line(c->instance, 0);
	const struct fields *f = &c->fields;

	if (!head)
		return false;
	c->rule = CLASSIFY_NONE;
	c->chain = 0;
	c->seed = head->seed;
	c->group_lines = head->groups;
	c->bucket_lines = head->buckets;
	c->bucket_count = head->bucket_count;
	c->entry_lines = head->entries;
	for (__u32 i = 0; i < CLASSIFIER_GROUPS / 64; i++) {
		__u32 left = head->group_count > i * 64 ? head->group_count - i * 64 : 0;
		c->groups[i] = left >= 64 ? ~0ull : (1ull << left) - 1;
	}
	const __u32 instance = c->instance;
	const __u32 source = head->tree[CLASSIFIED_SOURCE], destination = head->tree[CLASSIFIED_DESTINATION];
	if (source && destination && !((source | destination) & CLASSIFIER_WIDE)) {
		__u64 both = classify_search_both(instance, source, f->words[0], destination, f->words[2]);
		classify_keep(c, CLASSIFIED_SOURCE, both);
		classify_keep(c, CLASSIFIED_DESTINATION, both >> 32);
	} else {
		classify_keep(c, CLASSIFIED_SOURCE, classify_class(instance, source, f->words[0], f->words[1]));
		classify_keep(c, CLASSIFIED_DESTINATION,
			      classify_class(instance, destination, f->words[2], f->words[3]));
	}
	classify_keep(c, CLASSIFIED_SPORT,
		      classify_class(instance, head->tree[CLASSIFIED_SPORT], f->words[4] >> 48, 0));
	classify_keep(c, CLASSIFIED_DPORT,
		      classify_class(instance, head->tree[CLASSIFIED_DPORT], f->words[4] >> 32 & 0xffff, 0));
	return true;
}

/* By the upper six bits of a bit times LOWEST_BIT, of which no six bits in a row occur twice (Leiserson, Prokop and
 * Randall, "Using de Bruijn sequences to index a 1 in a computer word", 1998), its number. clang 14 has no way to say it
 * for BPF. */
#define LOWEST_BIT 0x03f79d71b4cb0a89ull
static const __u8 lowest_bit[64] = {
	0,  1,	48, 2,	57, 49, 28, 3,	61, 58, 50, 42, 38, 29, 17, 4,	62, 55, 59, 36, 53, 51,
	43, 22, 45, 39, 33, 30, 24, 18, 12, 5,	63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21,
	44, 32, 23, 11, 46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,	13, 8,	7,  6,
};

/* The lowest of them; CLASSIFIER_GROUPS: none. */
always_inline __u32 classify_next(const struct classify *c)
{
	for (__u32 i = 0; i < CLASSIFIER_GROUPS / 64; i++)
		if (c->groups[i])
			return i * 64 + lowest_bit[(c->groups[i] & -c->groups[i]) * LOWEST_BIT >> 58];
	return CLASSIFIER_GROUPS;
}

/* The label of a class that is to be tried now; *more: there are others behind it. */
always_inline __u16 classify_label(struct classify *c, const enum classified field, bool *more)
{
	const struct classifier_class *class = classifier_line(c->instance, c->rows[field]);
	__u32 at = c->at[field];

	if (!class || at >= class->labels)
		return 0;
	*more = at + 1 < class->labels;
	if (class->labels > CLASS_LABELS) {
		const __u16 *line = classifier_line(c->instance, class->list + at / 32);
		return line ? line[at % 32] : 0;
	}
	keep_register(at);
	return at < CLASS_LABELS ? class->label[at] : 0;
}

/* The labels to be tried now, one of each field that the group asks for; then on to the next ones. *more: there are. */
always_inline __u64 classify_labels(struct classify *c, __u32 asked, bool *more)
{
	__u64 labels = 0;
	bool turned = true; /* all fields before this one begin again */

#pragma clang loop unroll(full)
	for (int field = 0; field < CLASSIFIED_COUNT; field++) {
		bool others = false;
		if (!(asked & 1 << field))
			continue;
		labels |= (__u64)classify_label(c, field, &others) << (48 - 16 * field);
		if (!turned)
			continue;
		c->at[field] = others ? c->at[field] + 1 : 0;
		turned = !others;
	}
	*more = !turned;
	return labels;
}

always_inline __u64 classify_hash(const struct classify *c, const struct fields *key, __u32 group)
{
	const __u64 *w = key->words;
	__u64 hash = c->seed + group;

	hash = mix64(hash) + w[0] * 0x9e3779b97f4a7c15ull + w[1] * 0xc2b2ae3d27d4eb4full +
	       w[2] * 0x165667b19e3779f9ull + w[3] * 0xd6e8feb86659fd93ull + w[4] * 0xa0761d6478bd642full +
	       w[5] * 0xe7037ed1a0b428dbull + w[6] * 0x8ebc6af09c88c6e3ull;
	return mix64_again(mix64(hash));
}

/* The entry that a bucket names for a hash; 0: none. *full: it may stand in the next bucket. */
always_inline __u32 classify_bucket(const struct classify *c, __u32 bucket, __u32 tag, bool *full)
{
	const __u64 *slots = classifier_line(c->instance, c->bucket_lines + bucket);
	__u32 entry = 0;

	if (!slots)
		return 0;
#pragma clang loop unroll(full)
	for (int i = 0; i < 8; i++)
		if (slots[i] >> 32 == tag)
			entry = slots[i];
	*full = slots[7];
	return entry;
}

/* What a group has under this key: a rule, or a chain; CLASSIFY_NONE: nothing. The compiler has made sure that no two
 * entries that are looked at have one tag. */
always_inline __u32 classify_probe(const struct classify *c, const struct fields *key, __u32 group)
{
	__u64 hash = classify_hash(c, key, group);
	__u32 bucket = (hash >> 32) * c->bucket_count >> 32, number = 0;
	bool full = true;

	for (int probe = 0; probe < CLASSIFY_PROBES && full && !number; probe++)
		number = classify_bucket(c, bucket + probe, (__u32)hash | 1, &full);
	if (!number)
		return CLASSIFY_NONE;
	const struct classifier_entry *entry = classifier_line(c->instance, c->entry_lines + number);
	if (!entry || entry->group != group)
		return CLASSIFY_NONE;
	__u64 different = 0;
	for (int i = 0; i < FIELD_WORDS; i++)
		different |= entry->key.words[i] ^ key->words[i];
	return different ? CLASSIFY_NONE : entry->found;
}

/* One group, with one label of each kind that it asks for. 1: there is none that could be better. */
never_inline long classify_group(struct classify *c)
{
	__u32 number = classify_next(c);

	if (number >= CLASSIFIER_GROUPS)
		return 1;
	const struct classifier_group *group = classifier_line(c->instance, c->group_lines + number);
	if (!group || group->best >= c->rule)
		return 1;
	struct fields *key = &c->key;
	bool more = false;
	__u64 labels = group->asks & LABELS_ASKED ? classify_labels(c, group->asks, &more) : 0;
	for (int i = 0; i < FIELD_WORDS - 1; i++)
		key->words[i] = c->fields.words[i] & group->mask.words[i];
	key->words[FIELD_WORDS - 1] = labels;
	if (!more)
		c->groups[number / 64] &= ~(1ull << (number & 63));
	__u32 found = classify_probe(c, key, number);
	if (found == CLASSIFY_NONE)
		return 0;
	if (group->asks & CLASSIFIER_CHAINED)
		c->chain = found;
	else if (found < c->rule)
		c->rule = found;
	return 0;
}

/* Is this one of the labels of a class? They are in ascending order. */
__u32 __attribute__((noinline)) classify_has(__u32 instance, __u32 row, __u32 label)
{
	const struct classifier_class *class = classifier_line(instance, row);
	__u32 first = 0, count = class ? class->labels : 0, found = 0;

	if (!class)
		return 0;
	if (count <= CLASS_LABELS) {
#pragma clang loop unroll(full)
		for (int i = 0; i < CLASS_LABELS; i++)
			found |= class->label[i] == label;
		return found;
	}
	for (int i = 0; i < 16 && count; i++) {
		__u32 middle = first + count / 2;
		const __u16 *line = classifier_line(instance, class->list + middle / 32);
		if (!line)
			return 0;
		__u32 one = line[middle % 32];
		if (one == label)
			return 1;
		first = one < label ? middle + 1 : first;
		count = one < label ? count - count / 2 - 1 : count / 2;
	}
	return 0;
}

/* Does the packet meet a row? */
always_inline bool classify_meets(const struct classify *c, const struct fields *key, const struct fields *mask)
{
	__u64 different = 0, asked = mask->words[FIELD_WORDS - 1];

	for (int i = 0; i < FIELD_WORDS - 1; i++)
		different |= (c->fields.words[i] & mask->words[i]) ^ key->words[i];
	if (different)
		return false;
#pragma clang loop unroll(full)
	for (int field = 0; field < CLASSIFIED_COUNT; field++) {
		int shift = 48 - 16 * field;
		if (asked >> shift & 0xffff &&
		    !classify_has(c->instance, c->rows[field], key->words[FIELD_WORDS - 1] >> shift & 0xffff))
			return false;
	}
	return true;
}

/* The next row of a chain. */
always_inline void classify_link(struct classify *c)
{
	const struct classifier_link *link = classifier_line(c->instance, c->chain);
	const struct fields *mask = classifier_line(c->instance, c->chain + 1);

	if (!link || !mask || link->rule >= c->rule) {
		c->chain = 0;
		return;
	}
	if (classify_meets(c, &link->key, mask)) {
		c->rule = link->rule;
		c->chain = 0;
		return;
	}
	c->chain = link->last ? 0 : c->chain + 2;
}

static long classify_step(__u32 index, void *nothing)
{
	__u32 zero = 0;
	struct classify *c = bpf_map_lookup_elem(&classify_scratch, &zero);

	if (!c)
		return 1;
	if (!c->chain)
		return classify_group(c);
	classify_link(c);
	return 0;
}

/* The first rule of a classifier that c->fields meet, by its number; CLASSIFY_NONE: no rule, or no such classifier. */
always_inline __u32 classify(struct classify *c, __u32 instance)
{
	c->instance = instance;
	if (!classify_begin(c))
		return CLASSIFY_NONE;
	bpf_loop(CLASSIFY_STEPS, classify_step, NULL, 0);
	return c->rule;
}
