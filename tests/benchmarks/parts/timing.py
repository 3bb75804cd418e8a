"""Seconds of programs: medians and quartiles, of calls in alternation, within a time."""

import math
import time

import jax
import numpy as np

WARM = 2  # calls that are not counted
FEWEST = 3  # that are
SAMPLE = 0.02  # seconds that a sample takes at least, where calls may overlap


def timed(call):
    """(what a call gives, seconds until all of it is there)."""
    began = time.perf_counter()
    made = jax.block_until_ready(call())
    return made, time.perf_counter() - began


def quartiles(values):
    """[first quartile, median, third quartile]."""
    return np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75)).tolist()


def alternate(calls, clock, rounds):
    """Seconds [rounds][calls] of calls that take turns, fewer rounds if the time is up.

    Each call has to wait for its own results, if they are not jax's.
    """
    for call in calls:
        for _ in range(WARM):
            jax.block_until_ready(call())
    seconds = []
    while len(seconds) < rounds and (len(seconds) < FEWEST or clock.left > 0):
        seconds.append([timed(call)[1] for call in calls])
    return seconds


def sampled(function, sets, clock, samples):
    """Quartiles of the seconds of function(*arguments); sets: of arguments, in rotation.

    On accelerators calls follow each other without waiting, enough of them for a sample to
    be longer than what starting one takes; on CPUs they might overlap, so each is awaited.
    """
    jax.block_until_ready(function(*sets[0]))
    once = timed(lambda: function(*sets[-1]))[1]
    several = jax.default_backend() != "cpu"
    calls = max(1, math.ceil(SAMPLE / once)) if several else 1

    def sample(first):
        made = None
        for number in range(first, first + calls):
            made = function(*sets[number % len(sets)])
        return made

    seconds = []
    while len(seconds) < samples and (len(seconds) < FEWEST or clock.left > 0):
        took = timed(lambda: sample(calls * len(seconds)))[1]
        seconds.append(took / calls)
    return quartiles(seconds)


def compiled(function, *arguments, **options):
    """(compiled program, what was traced, seconds of tracing and compiling)."""
    began = time.perf_counter()
    traced = jax.jit(function, **options).trace(*arguments)
    program = traced.lower().compile()
    return program, traced, time.perf_counter() - began
