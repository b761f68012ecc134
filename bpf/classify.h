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

#define CLASSIFIERS 96
#define CLASSIFY_NONE 0xffffff
#define CLASSIFY_STEPS (1 << 23) /* as many as bpf_loop() can do; the compiler refuses what could take more */
#define LABELS_ASKED ((1 << CLASSIFIED_COUNT) - 1)
#define TREE_LEVELS 8 /* for 9^8 - 1 boundaries */
#define TREE_KEYS 8

/* What is looked for, and how far that is. */
struct classify {
	__u32 instance;
	__u32 rule; /* the best that was found */
	__u32 told; /* with it */
	__u32 group_lines;
	__u32 move_lines;
	__u32 move_count;
	__u32 entry_lines;
	__u32 entry_count;
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
} classifier_v3 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct classify);
} classify_scratch SEC(".maps");

always_inline struct classify *classify_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&classify_scratch, &zero);
}

always_inline void *classifier_lines(__u32 instance)
{
	return bpf_map_lookup_elem(&classifier_v3, &instance);
}

always_inline void *classifier_line(void *lines, __u32 line)
{
	return bpf_map_lookup_elem(lines, &line);
}

/* a < b, without a branch: the borrow of their difference. */
always_inline __u64 classify_less(__u64 a, __u64 b)
{
	return ((~a & b) | (~(a ^ b) & (a - b))) >> 63;
}

/* The same of small numbers. What is found so the verifier does not take as a bound: it would try every combination of
 * where two searches can end. */
always_inline __u32 classify_smaller(__u64 a, __u32 b)
{
	__u64 smaller = (a - b) >> 63;

	keep_register(smaller);
	return smaller;
}

/* Which child of a node a word belongs to; neither it nor the boundaries have the uppermost bit, so that the sign of a
 * difference tells. */
always_inline __u32 classify_child(const __u64 *keys, const int count, __u64 word)
{
	__u32 child = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < count; i++) {
		child += (keys[i] - word) >> 63;
		keep_register(child); /* one after the other: all at once they would need a stack */
	}
	return child;
}

/* The same of a number in two words. Few boundaries have its upper one. */
always_inline __u32 classify_wide_child(const __u64 *upper, const __u64 *lower, __u64 high, __u64 low)
{
	__u32 child = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < TREE_KEYS; i++) {
		child += classify_less(upper[i], high);
		keep_register(child);
	}
	if (child == TREE_KEYS || upper[child & (TREE_KEYS - 1)] != high)
		return child;
#pragma clang loop unroll(full)
	for (int i = 0; i < TREE_KEYS; i++) {
		__u64 other = upper[i] ^ high;
		child += (~other & (other - 1)) >> 63 & classify_less(lower[i], low);
		keep_register(child);
	}
	return child;
}

/* The value of the interval that a number falls into, in a wide tree. */
__u32 __attribute__((noinline)) classify_wide_search(__u32 instance, __u32 at, __u64 high, __u64 low)
{
	void *lines = classifier_lines(instance);
	const struct classifier_tree *tree = lines ? classifier_line(lines, at) : NULL;
	__u32 node = 0, level = 0, line;
	const __u64 *upper, *lower;

	if (!tree)
		return 0;
	for (; level < TREE_LEVELS && level + 1 < tree->levels; level++) {
		line = tree->base[level] + 2 * node;
		upper = classifier_line(lines, line);
		lower = classifier_line(lines, line + 1);
		if (!upper || !lower)
			return 0;
		node = node * (TREE_KEYS + 1) + classify_wide_child(upper, lower, high, low);
	}
	line = tree->base[level & (TREE_LEVELS - 1)] + 3 * node;
	upper = classifier_line(lines, line);
	lower = classifier_line(lines, line + 1);
	const __u32 *values = classifier_line(lines, line + 2);

	return upper && lower && values ? values[classify_wide_child(upper, lower, high, low) & 15] : 0;
}

/* Where a walk through a tree has come to. */
struct walk_down {
	const struct classifier_tree *tree;
	__u64 word;   /* what is looked for, without its uppermost bit */
	__u32 levels; /* 0: there is no tree */
	__u32 node;
};

/* There is a tree for words without the uppermost bit, and behind its line that of the tree for the others. */
always_inline bool classify_walk(void *lines, struct walk_down *w, __u32 tree, __u64 word)
{
	w->tree = classifier_line(lines, tree + (word >> 63));
	if (!w->tree)
		return false;
	w->word = word & ~0ull >> 1;
	w->levels = w->tree->levels * classify_smaller(0, tree);
	w->node = 0;
	return true;
}

/* One level further down; false: that was the lowest but one. */
always_inline bool classify_down(void *lines, struct walk_down *w, __u32 level)
{
	if (!classify_smaller(level + 1, w->levels))
		return false;
	const __u64 *keys = classifier_line(lines, w->tree->base[level & (TREE_LEVELS - 1)] + w->node);
	if (!keys)
		return false;
	w->node = w->node * (TREE_KEYS + 1) + classify_child(keys, TREE_KEYS, w->word);
	return true;
}

always_inline const struct classifier_leaf *classify_leaf(void *lines, const struct walk_down *w)
{
	__u32 line = w->tree->base[(w->levels - 1) & (TREE_LEVELS - 1)] + w->node;

	return classifier_line(lines, line * classify_smaller(0, w->levels));
}

always_inline __u32 classify_value(const struct walk_down *w, const struct classifier_leaf *leaf)
{
	return leaf->values[classify_child(leaf->keys, LEAF_KEYS, w->word)] * classify_smaller(0, w->levels);
}

/* The values of the intervals that two words fall into, the second one's in the upper half; 0: no such tree. Both at once,
 * that neither waits for the other's cache lines. */
__u64 __attribute__((noinline)) classify_search(__u32 instance, __u32 first, __u64 word, __u32 second, __u64 other)
{
	void *lines = classifier_lines(instance);
	struct walk_down a, b;

	if (!lines || !classify_walk(lines, &a, first, word) || !classify_walk(lines, &b, second, other))
		return 0;
	for (__u32 level = 0; level < TREE_LEVELS; level++) {
		bool further = classify_down(lines, &a, level);
		further |= classify_down(lines, &b, level);
		if (!further)
			break;
	}
	const struct classifier_leaf *leaf = classify_leaf(lines, &a), *sibling = classify_leaf(lines, &b);
	if (!leaf || !sibling)
		return 0;
	return classify_value(&a, leaf) | (__u64)classify_value(&b, sibling) << 32;
}

always_inline void classify_keep(struct classify *c, void *lines, const enum classified field, __u32 row)
{
	c->rows[field] = row;
	c->at[field] = 0;
	if (!row)
		return;
	const struct classifier_class *class = classifier_line(lines, row);
	if (!class)
		return;
	for (int i = 0; i < CLASSIFIER_GROUPS / 64; i++)
		c->groups[i] &= class->groups[i];
}

/* The groups that may have a rule for these fields. */
always_inline bool classify_begin(struct classify *c)
{
	void *lines = classifier_lines(c->instance);
	const struct classifier_head *head = lines ? classifier_line(lines, 0) : NULL;
	const struct fields *f = &c->fields;

	if (!head)
		return false;
	c->rule = CLASSIFY_NONE;
	c->chain = 0;
	c->seed = head->seed;
	c->group_lines = head->groups;
	c->move_lines = head->moves;
	c->move_count = head->move_count;
	c->entry_lines = head->entries;
	c->entry_count = head->entry_count;
	for (__u32 i = 0; i < CLASSIFIER_GROUPS / 64; i++) {
		__u32 left = head->group_count > i * 64 ? head->group_count - i * 64 : 0;
		c->groups[i] = left >= 64 ? ~0ull : (1ull << left) - 1;
	}
	const __u32 source = head->tree[CLASSIFIED_SOURCE], destination = head->tree[CLASSIFIED_DESTINATION];
	__u64 rows = classify_search(c->instance, source & CLASSIFIER_WIDE ? 0 : source, f->words[0],
				     destination & CLASSIFIER_WIDE ? 0 : destination, f->words[2]);
	__u32 from = rows, to = rows >> 32;
	if (source & CLASSIFIER_WIDE)
		from = classify_wide_search(c->instance, source & ~CLASSIFIER_WIDE, f->words[0], f->words[1]);
	if (destination & CLASSIFIER_WIDE)
		to = classify_wide_search(c->instance, destination & ~CLASSIFIER_WIDE, f->words[2], f->words[3]);
	classify_keep(c, lines, CLASSIFIED_SOURCE, from);
	classify_keep(c, lines, CLASSIFIED_DESTINATION, to);
	rows = classify_search(c->instance, head->tree[CLASSIFIED_SPORT], f->words[4] >> 48,
			       head->tree[CLASSIFIED_DPORT], f->words[4] >> 32 & 0xffff);
	classify_keep(c, lines, CLASSIFIED_SPORT, rows);
	classify_keep(c, lines, CLASSIFIED_DPORT, rows >> 32);
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
	void *lines = classifier_lines(c->instance);
	const struct classifier_class *class = lines ? classifier_line(lines, c->rows[field]) : NULL;
	__u32 at = c->at[field];

	if (!class || at >= class->labels)
		return 0;
	*more = at + 1 < class->labels;
	if (class->labels > CLASS_LABELS) {
		const __u16 *line = classifier_line(lines, class->list + at / 32);
		return line ? line[at % 32] : 0;
	}
	keep_register(at);
	return at < CLASS_LABELS ? class->label[at] : 0;
}

/* The labels to be tried now become the last word of the key, one of each field that the group asks for; then on to the next
 * ones. True: there are. */
always_inline bool classify_labels(struct classify *c, __u32 asked)
{
	bool turned = true; /* all fields before this one begin again */

#pragma clang loop unroll(full)
	for (int field = 0; field < CLASSIFIED_COUNT; field++) {
		bool others = false;
		if (!(asked & 1 << field))
			continue;
		c->key.words[FIELD_WORDS - 1] |= (__u64)classify_label(c, field, &others) << (48 - 16 * field);
		if (!turned)
			continue;
		c->at[field] = others ? c->at[field] + 1 : 0;
		turned = !others;
	}
	return !turned;
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

/* What a group has under this key; NULL: nothing. */
always_inline const struct classifier_entry *classify_entry(const struct classify *c, __u32 group)
{
	const struct fields *key = &c->key;
	__u64 hash = classify_hash(c, key, group);
	void *lines = classifier_lines(c->instance); /* again: the stack is short */
	__u32 number = (hash >> 32) * c->move_count >> 32;
	const __u8 *moves = lines ? classifier_line(lines, c->move_lines + number / 64) : NULL;
	if (!moves)
		return NULL;
	__u64 moved = (__u32)(hash * (2 * moves[number % 64] + 1));
	const struct classifier_entry *entry = classifier_line(lines, c->entry_lines + (moved * c->entry_count >> 32));
	if (!entry)
		return NULL;
	__u64 different = (entry->rule & 0xff) ^ group;
	for (int i = 0; i < FIELD_WORDS; i++)
		different |= entry->key.words[i] ^ key->words[i];
	return different ? NULL : entry;
}

/* rule: as entries have it. Places without an entry have CLASSIFY_NONE. */
always_inline void classify_found(struct classify *c, __u32 rule, __u32 told)
{
	if (rule >> 8 >= c->rule)
		return;
	c->rule = rule >> 8;
	c->told = told;
}

/* One group, with one label of each kind that it asks for. 1: there is none that could be better. */
never_inline long classify_group(struct classify *c)
{
	void *lines = classifier_lines(c->instance);
	__u32 number = classify_next(c);

	if (!lines || number >= CLASSIFIER_GROUPS)
		return 1;
	const struct classifier_group *group = classifier_line(lines, c->group_lines + number);
	if (!group || group->best >= c->rule)
		return 1;
	for (int i = 0; i < FIELD_WORDS - 1; i++)
		c->key.words[i] = c->fields.words[i] & group->mask.words[i];
	c->key.words[FIELD_WORDS - 1] = 0;
	if (!(group->asks & LABELS_ASKED) || !classify_labels(c, group->asks))
		c->groups[number / 64] &= ~(1ull << (number & 63));
	const struct classifier_entry *entry = classify_entry(c, number);
	if (!entry)
		return 0;
	if (group->asks & CLASSIFIER_CHAINED)
		c->chain = entry->told;
	else
		classify_found(c, entry->rule, entry->told);
	return 0;
}

/* Is this one of the labels of a class? They are in ascending order. */
__u32 __attribute__((noinline)) classify_has(__u32 instance, __u32 row, __u32 label)
{
	void *lines = classifier_lines(instance);
	const struct classifier_class *class = lines ? classifier_line(lines, row) : NULL;
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
		__u32 half = count / 2, middle = first + half;
		const __u16 *line = classifier_line(lines, class->list + middle / 32);
		if (!line)
			return 0;
		__u32 one = line[middle % 32];
		if (one == label)
			return 1;
		__u32 above = classify_smaller(one, label);
		first += above * (half + 1);
		count = half - (above & ~count);
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
	void *lines = classifier_lines(c->instance);
	const struct classifier_link *link = lines ? classifier_line(lines, c->chain) : NULL;
	const struct fields *mask = lines ? classifier_line(lines, c->chain + 1) : NULL;

	if (!link || !mask || link->rule >> 8 >= c->rule) {
		c->chain = 0;
		return;
	}
	if (classify_meets(c, &link->key, mask)) {
		classify_found(c, link->rule, link->told);
		c->chain = 0;
		return;
	}
	c->chain = link->rule & 0xff ? 0 : c->chain + 2;
}

static long classify_step(__u32 index, void *nothing)
{
	struct classify *c = classify_here();

	if (!c)
		return 1;
	if (!c->chain)
		return classify_group(c);
	classify_link(c);
	return 0;
}

/* The first rule of a classifier that classify_scratch.fields meet, by its number, and in `told` what is told with it;
 * CLASSIFY_NONE: no rule, or no such classifier. */
__noinline __u32 classify(__u32 instance)
{
	struct classify *c = classify_here();

	if (!c)
		return CLASSIFY_NONE;
	c->instance = instance;
	if (!classify_begin(c))
		return CLASSIFY_NONE;
	bpf_loop(CLASSIFY_STEPS, classify_step, NULL, 0);
	return c->rule;
}
