/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A program can be held at any of its look-ups until it is let go, so that another one runs in between, for certain: what
 * two CPUs do to each other once in a million times, step by step. */
#pragma once

#define HOLD_TURNS (1 << 23) /* as many as bpf_loop takes: after a second or two it goes on by itself */
#define HOLD_LOOKS 32	     /* a turn */

struct {
	volatile __u32 left; /* look-ups to go; 0: nobody is to be held */
	volatile __u32 held; /* somebody is */
	volatile __u32 go;
} hold_now;

static long hold_turn(__u32 index, void *unused)
{
	for (int i = 0; i < HOLD_LOOKS; i++)
		if (hold_now.go)
			return 1;
	return 0;
}

/* A function that is verified once, and not at each look-up. */
__attribute__((noinline)) int hold(void)
{
	if (!hold_now.left || --hold_now.left)
		return 0;
	hold_now.held = 1;
	bpf_loop(HOLD_TURNS, hold_turn, NULL, 0);
	hold_now.held = 0;
	return 0;
}
