"""Experiments that wait for an accelerator, in order, for the time that is left.

Each is a command that goes on where it was stopped, such as `advadapters train`: it is sent
SIGTERM when the time is up, and started again in the next sitting until it ends with 0.
"""

import subprocess
import sys
import time

NAME = "queue"
GRACE = 20  # seconds from SIGTERM to the end: a checkpoint is written

# (name, arguments of python), such as ("digits", ["-m", "advadapters", "train", ...]).
QUEUE = ()


def work(record, until, queue=QUEUE):
    """Runs what is not done of the queue; rows of the part "queue"."""
    for name, arguments in queue:
        left = until - GRACE - time.time()
        if record.done(NAME, name) or left <= 0:
            continue
        print(f"{NAME}: {name} ...", flush=True)
        began = time.time()
        failure = ended(subprocess.Popen([sys.executable, *arguments]), left)
        record.put(NAME, name, failure or {"seconds_spent": time.time() - began})


def ended(process, seconds):
    """What a process did not do, {} if it did all; it is asked to stop after some time."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return {"skipped": "goes on in the next sitting"}
    return {"error": f"ended with code {code}"} if code else {}
