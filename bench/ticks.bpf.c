// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How late a softirq runs: a timer that goes off again and again on one CPU. What is true of its callback is true of a
 * packet that a device's interrupt brings to that CPU.
 *
 *   tick   starts it on the CPU that runs this; it ends when the object is closed
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#define CLOCK_MONOTONIC 1
#define PIN_TO_CPU 2 /* BPF_F_TIMER_CPU_PIN, since kernel 6.7 */

struct bpf_timer {
	__u64 opaque[2];
} __attribute__((aligned(8)));

struct ticker {
	struct bpf_timer timer;
	__u64 period; /* ns */
	__u64 due;    /* ns, CLOCK_MONOTONIC */
	__u64 latest; /* ns after it was due, at worst */
	__u64 ticks;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ticker);
} tickers SEC(".maps");

static void wait_again(struct ticker *ticker, __u64 now)
{
	ticker->due = now + ticker->period;
	bpf_timer_start(&ticker->timer, ticker->period, PIN_TO_CPU);
}

static int ticked(void *map, __u32 *key, struct ticker *ticker)
{
	__u64 now = bpf_ktime_get_ns(), late = now - ticker->due;

	if (late > ticker->latest)
		ticker->latest = late;
	ticker->ticks++;
	wait_again(ticker, now);
	return 0;
}

SEC("tc") int tick(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct ticker *ticker = bpf_map_lookup_elem(&tickers, &zero);

	if (!ticker || bpf_timer_init(&ticker->timer, &tickers, CLOCK_MONOTONIC) ||
	    bpf_timer_set_callback(&ticker->timer, ticked))
		return TC_ACT_SHOT;
	wait_again(ticker, bpf_ktime_get_ns());
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
