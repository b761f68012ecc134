/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every part of the data path uses: facts set by the loader, time, checksum arithmetic. */
#pragma once

#define READ_ONCE(WORD) (*(volatile typeof(WORD) *)&(WORD))

#define always_inline static inline __attribute__((always_inline))
/* The verifier ties a bounds check to the register it was made on: the compiler must not compute it twice. */
#define keep_register(VARIABLE) asm volatile("" : "+r"(VARIABLE))
/* The compiler moves no access to memory across it. */
#define compiler_barrier() asm volatile("" ::: "memory")
/* Has a stack frame of its own: for what is large and not on the hit path. */
#define never_inline static __attribute__((noinline))

/* Set by the loader: what was found out about this kernel and the sizes of the tables. */
const volatile __u32 cw_hz = 250;
const volatile bool cw_kernel_context = false;
const volatile bool cw_csum_ipv6_flag = false;
const volatile bool cw_conntrack = false;
const volatile bool cw_adoption = false;
const volatile bool cw_handover = false;

/* Ones' complement sum of 16-bit words in as many bits as it takes, folded to 16. */
always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The same sum in so few bits that others can be added to it. */
always_inline __u32 fold64(__u64 sum)
{
	return (__u32)(sum & 0xffff) + (__u32)(sum >> 16 & 0xffff) + (__u32)(sum >> 32);
}

/* RFC 1624: HC' = ~(~HC + ~m + m'); delta is the sum of ~m + m' over all changed words, folded or not. */
always_inline __u16 checksum_apply(__u16 checksum, __u32 delta)
{
	return ~fold((__u16)~checksum + delta);
}

always_inline __u32 delta16(__u16 from, __u16 to)
{
	return (__u32)(__u16)~from + to;
}

always_inline __u32 delta32(__u32 from, __u32 to)
{
	return delta16(from >> 16, to >> 16) + delta16(from, to);
}

/* Low 32 bits are enough: every difference taken is far below 2^31 ticks. */
always_inline __u32 now(void)
{
	return bpf_jiffies64();
}

always_inline __u32 ticks(__u32 ms)
{
	return (__u64)ms * cw_hz / 1000;
}

/* An address of IPv6 in a packet, where it is aligned to two bytes: memcpy would go by the four that its type promises. */
always_inline void addr_load(union addr *to, const void *from)
{
	const __u64 *quads = from;

	to->quads[0] = quads[0];
	to->quads[1] = quads[1];
}

always_inline void addr_store(void *to, const union addr *from)
{
	__u64 *quads = to;

	quads[0] = from->quads[0];
	quads[1] = from->quads[1];
}

always_inline bool addr_equal(const union addr *a, const union addr *b)
{
	return a->quads[0] == b->quads[0] && a->quads[1] == b->quads[1];
}

/* Checksum difference between the addresses of two tuples of one family. */
always_inline __u16 addr_delta(const struct tuple *from, const struct tuple *to)
{
	__u32 delta = delta32(from->src.words[0], to->src.words[0]) + delta32(from->dst.words[0], to->dst.words[0]);

	if (from->family == FAMILY_IPV6)
		for (int i = 1; i < 4; i++)
			delta += delta32(from->src.words[i], to->src.words[i]) +
				 delta32(from->dst.words[i], to->dst.words[i]);
	return fold(delta);
}

always_inline void tuple_reverse(const struct tuple *t, struct tuple *out)
{
	out->src = t->dst;
	out->dst = t->src;
	out->sport = t->dport;
	out->dport = t->sport;
	out->proto = t->proto;
	out->family = t->family;
	out->pad[0] = out->pad[1] = 0;
}

/* Mixes 32 bits so that each input bit reaches each output bit (the finalizer of MurmurHash3). */
always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash ^= word;
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* Halves of the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). */
always_inline __u64 mix64(__u64 hash)
{
	return (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9ull;
}

always_inline __u64 mix64_again(__u64 hash)
{
	return (hash ^ hash >> 27) * 0x94d049bb133111ebull;
}

/* The same on every node and after every restart, so that the same packet finds the same endpoint. */
always_inline __u32 tuple_hash(const struct tuple *t)
{
	__u32 hash = mix(0x9e3779b9, (__u32)t->proto << 8 | t->family);

	hash = mix(hash, (__u32)t->sport << 16 | t->dport);
	hash = mix(hash, t->src.words[0]);
	hash = mix(hash, t->dst.words[0]);
	if (t->family == FAMILY_IPV4)
		return hash;
	for (int i = 1; i < 4; i++) {
		hash = mix(hash, t->src.words[i]);
		hash = mix(hash, t->dst.words[i]);
	}
	return hash;
}
