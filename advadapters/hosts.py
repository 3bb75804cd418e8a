"""Several processes, one for each host: how they meet, work as one, and stop together."""

import contextlib
import functools
import glob
import itertools
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

from advadapters.errors import UsageError

SECONDS = "300"
# What clusters set, or have; without any of it jax need not be asked (nor imported).
SIGNS = (
    "SLURM_PROCID",
    "OMPI_",
    "JOB_COMPLETION_INDEX",  # Kubernetes
    "TPU_WORKER_",
    "TPU_PROCESS_ADDRESSES",
    "MEGASCALE_",
    "JAX_COORDINATOR_",
)
TPUS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
GREETING = "advadapters:"
FAILED = "advadapters/failed"
LONG = 10**9  # milliseconds; who waits is ended when another one fails
CALLS = itertools.count()
ENDING = threading.Lock()  # of the thread that ends this process


def read_flags(argv):
    """The arguments without --distributed and --wait, and these two.

    Raises UsageError for a value that cannot be right.
    """
    rest, found = [], {"distributed": "auto", "wait": SECONDS}
    for argument in argv:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in found:
            found[name] = value if equals else ""
        else:
            rest.append(argument)
    if not (found["wait"].isdecimal() and int(found["wait"])):
        raise UsageError(f"--wait must be whole seconds, got {found['wait']!r}")
    if found["distributed"] not in ("auto", "none"):
        parse(found["distributed"])
    return rest, found["distributed"], int(found["wait"])


def parse(text):
    """ "10.0.0.1:1234,4,0" -> ("10.0.0.1:1234", 4, 0); raises UsageError."""
    address, *numbers = text.split(",")
    host, _, port = address.rpartition(":")
    if len(numbers) == 2 and all(part.isdecimal() for part in (port, *numbers)) and host:
        count, index = map(int, numbers)
        if index < count and 0 < int(port) < 2**16:
            return address, count, index
    raise UsageError(
        f"--distributed={text} must be auto, none or HOST:PORT,COUNT,INDEX: where process "
        "0 listens, how many there are, and which one this is, from 0"
    )


def join(distributed, seconds):
    """Meets the other processes; must come before anything that uses devices.

    distributed: "auto" asks jax for the cluster (TPU pod, SLURM, Kubernetes, Open MPI),
    which may be none. From here on only process 0 prints to stdout, and if one process
    fails, so do all. Raises UsageError naming who did not come within `seconds`.
    """
    if distributed == "none":
        return
    place = detect(seconds) if distributed == "auto" else parse(distributed)
    if place is None or place[1] == 1:
        return
    address, count, number = place
    meet(address, count, number, seconds)
    import jax

    jax.distributed.initialize(address, count, number, initialization_timeout=seconds)
    threading.Thread(target=watch, daemon=True).start()
    if not first():
        sys.stdout = open(os.devnull, "w")


def detect(seconds):
    """(address, processes, number) of the cluster that started this one, or None."""
    signs = any(name.startswith(SIGNS) for name in os.environ)
    if not signs and not any(map(glob.glob, TPUS)):
        return None
    from jax._src.clusters import ClusterEnv

    ask = ClusterEnv.auto_detect_unset_distributed_params
    try:
        address, count, index, _ = ask(None, None, None, None, None, seconds)
    except Exception as error:  # whatever metadata servers and clusters answer
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"cannot tell the hosts of this cluster: {reason}; give "
            "--distributed=none, or HOST:PORT,COUNT,INDEX"
        ) from None
    return (address, int(count or 1), int(index or 0)) if address else None


def meet(address, count, index, seconds):
    """Returns when all processes have called process 0 at the address.

    jax's own wait would end in a crash that names nobody. Raises UsageError.
    """
    told = call(address, index, seconds) if index else listen(address, count, seconds)
    if told:
        raise UsageError(told)


def listen(address, count, seconds):
    """Process 0: waits for the others; returns (and tells them) who did not come, or ""."""
    calls, shown, deadline = {}, -math.inf, time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(open_port(address))
        who = ""
        while missing := sorted(set(range(1, count)) - calls.keys()):
            numbers = ", ".join(map(str, missing))
            who = f"{len(missing)} of {count} hosts at {address}: {numbers}"
            now = time.monotonic()
            if now > deadline:
                break
            if now > shown + 10:
                print(f"waiting for {who}", file=sys.stderr, flush=True)
                shown = now
            server.settimeout(min(10, deadline - now + 0.01))
            # Whatever else calls at this port is no host.
            with contextlib.suppress(OSError, ValueError):
                one = stack.enter_context(server.accept()[0])
                one.settimeout(5)
                calls[int(one.recv(16))] = one
        told = f"waited {seconds} s in vain for {who}" if missing else ""
        for one in calls.values():
            with contextlib.suppress(OSError):
                one.sendall(f"{GREETING} {told}\n".encode())
    return told


def open_port(address):
    """A socket that listens at the port of the address on every interface."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    place = ("", int(address.rpartition(":")[2]))
    try:
        return socket.create_server(place, family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UsageError(f"cannot listen at {address}: {error}") from None


def call(address, index, seconds):
    """Another process: what process 0 answers, which is "" when all have called it."""
    print(f"host {index} waits for host 0 at {address}", file=sys.stderr, flush=True)
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            place = (host.strip("[]"), int(port))
            with socket.create_connection(place, timeout=left) as one:
                one.settimeout(seconds + 10)  # from here on it is process 0 that waits
                one.sendall(str(index).encode())
                answer = one.makefile(errors="replace").readline()
            if answer.startswith(GREETING):
                return answer.removeprefix(GREETING).strip()
        time.sleep(0.3)
    return f"host {index} waited {seconds} s in vain for host 0 at {address}"


class Preempted(RuntimeError):
    """A host got SIGTERM; what was done so far is saved."""


@contextlib.contextmanager
def sigterm():
    """Yields a function: step -> whether to stop after it, as some host got SIGTERM.

    All hosts must call it after every step; they agree on one to stop after.
    """
    if joined().client:  # jax listens for the signal
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def joined() -> Any:
    """jax's state of a run of several processes: client (None if alone), process_id."""
    from jax._src import distributed

    return distributed.global_state


def failure():
    """(exit code, process, what happened) of the first one that failed, or None."""
    try:
        code, who, text = joined().client.key_value_try_get(FAILED).split(" ", 2)
    except Exception:  # there is no such key, or no server any more
        return None
    return int(code), int(who), text


def watch():
    """Ends this process when another one has failed; collectives would wait for ever."""
    while not (other := failure()):
        time.sleep(1)
    ENDING.acquire()
    follow(*other)


def follow(code, who, text):
    """Ends this process because another one has failed."""
    print(f"stopped, as host {who} has failed: {text}", file=sys.stderr)
    end(code)


def fail(code, error):
    """Tells the other processes, if there are any, why this one fails, and ends it."""
    if "jax" not in sys.modules or joined().client is None:
        return
    ENDING.acquire()
    if other := failure():  # the error here may be but its consequence
        follow(*other)
    if not isinstance(error, UsageError):
        traceback.print_exception(error)
    with contextlib.suppress(Exception):
        text = f"{code} {joined().process_id} {error}"
        joined().client.key_value_set(FAILED, text)
    end(code)


def end(code):
    """Exits at once: the ordinary way waits for the other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0 if joined().process_id else 3)  # process 0 is who tells the others
    os._exit(code)


def first():
    """Whether this is process 0, which alone writes and prints."""
    return joined().process_id == 0


def once(function):
    """Has process 0 alone run a function; all return what it returned, which is JSON.

    All must call it, in the same order. If it raises, all do: process 0 the same error,
    the others a UsageError or a RuntimeError with its text.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        connection = joined().client
        if connection is None:
            return function(*args, **kwargs)
        key = f"advadapters/once/{next(CALLS)}"
        if not first():
            return hear(connection.blocking_key_value_get(key, LONG))
        try:
            found = function(*args, **kwargs)
        except Exception as error:
            connection.key_value_set(key, tell(None, error))
            raise
        connection.key_value_set(key, tell(found, None))
        return found

    return run


def share(found):
    """What every process gives, plain values of JSON, as a list by their numbers.

    All must call it, in the same order. What one of them gives should be below 4 MB.
    """
    told, connection = joined(), joined().client
    if connection is None:
        return [found]
    key = f"advadapters/share/{next(CALLS)}"
    connection.key_value_set(f"{key}/{told.process_id}", json.dumps(found))
    texts = (
        connection.blocking_key_value_get(f"{key}/{number}", LONG)
        for number in range(told.num_processes)
    )
    return [json.loads(text) for text in texts]


def tell(found, error):
    """What a function returned, or raised, as text for `hear`."""
    told = {"found": found}
    if error:
        told = {"usage": isinstance(error, UsageError), "error": str(error)}
    return json.dumps(told)


def hear(text):
    """What was told: returns it, or raises it."""
    told = json.loads(text)
    if "error" in told:
        raise (UsageError if told["usage"] else RuntimeError)(told["error"])
    return told["found"]
