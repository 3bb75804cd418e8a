"""Measures row after row until the time is up, in a process that may be lost."""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from parts import PARTS
from parts.record import Record, Refused

# How a worker ends: all is done or the time is up; an earlier output cannot be gone on
# with; the device answers no more, though another process may find that it does.
FINISHED, REFUSED, BROKEN = 0, 2, 3
SAFETY = 1.25
PACE = {"full": 1.0, "cpu": 1.0, "small": 0.1}  # of the estimates


class Case(NamedTuple):
    """One row. seconds: what it takes, compiling included, at a guess.

    run: (setting, clock, rows so far) -> row, a dict of plain values.
    """

    name: str
    seconds: float
    run: Callable


class Clock(NamedTuple):
    """until: when a row has to end; in seconds of `time.time`, which processes share."""

    until: float

    @property
    def left(self):
        """Seconds."""
        return self.until - time.time()


def work(options, began, until):
    """All parts, each in its share of the time, then what they left out; exits.

    began: the time by which the sitting is known. until: when it ends.
    """
    from parts import settings

    setting = settings.make(options)
    record = Record(options["output"])
    sitting = {"began": began, "commit": settings.commit(), "options": options}
    try:
        record.go_on(settings.told(setting), sitting)
    except Refused as refusal:
        print(f"accelerator: {refusal}", file=sys.stderr)
        sys.exit(REFUSED)
    names = [name for name in PARTS if name in options["parts"]]
    for limited in (True, False):
        for number, name in enumerate(names):
            share = PARTS[name] / sum(PARTS[other] for other in names[number:])
            left = until - time.time()
            limit = time.time() + left * share if limited else until
            try:
                cases = import_module(f"parts.{name}").cases(setting)
            except Exception as error:
                record.put(name, "all", {"error": told(error)})
            else:
                measure(name, cases, setting, record, limit)
    sys.exit(FINISHED)


def measure(part, cases, setting, record, until):
    """The rows of a part that are not done, as far as the time goes.

    A row is begun if what it may take is left: its guess, times what a row of the part
    took at most so far in proportion to its own, and a quarter more.
    """
    ratios = []
    for case in cases:
        if record.done(part, case.name):
            continue
        guess = case.seconds * PACE[setting.size]
        estimate = guess * (SAFETY * max(ratios) if ratios else 1)
        left = until - time.time()
        if left < estimate:
            why = f"needs about {estimate:.0f} s, {max(left, 0):.0f} are left"
            record.put(part, case.name, {"skipped": why})
            continue
        print(f"{part}: {case.name} ...", flush=True)
        ratios.append(one(part, case, setting, record, Clock(until)) / max(guess, 1e-3))


def one(part, case, setting, record, clock):
    """Measures one row; the seconds that it took."""
    record.begin(part, case.name)
    began = time.time()
    try:
        row = case.run(setting, clock, record.rows)
    except Exception as error:
        traceback.print_exc()
        row = {"error": told(error)}
    else:
        row["seconds_spent"] = time.time() - began
    record.put(part, case.name, row)
    clean(setting)
    return time.time() - began


def told(error):
    """An exception as a short text."""
    return f"{type(error).__name__}: {str(error)[:500]}"


def clean(setting):
    """Frees what the last row held; exits where the device does not answer."""
    import jax

    gc.collect()
    jax.clear_caches()
    if "torch" in sys.modules and setting.fast:
        sys.modules["torch"].cuda.empty_cache()
    try:
        assert float(jax.device_put(1.0, setting.device) + 1) == 2
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)  # what a broken device still holds may not be waited for
