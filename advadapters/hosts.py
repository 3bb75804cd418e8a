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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from advadapters.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
Failure = tuple[int, int, str]  # exit code, number of the process, what happened

SECONDS = "300"
STOPPING = (signal.SIGTERM, signal.SIGINT)
# What clusters set in the environment. Without any of it jax need not be asked (nor
# imported).
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
LONG = 10**9  # milliseconds; a process that waits is ended when another one fails
CALLS = itertools.count()
ENDING = threading.Lock()  # held by the thread that ends this process


def read_flags(argv: Sequence[str]) -> tuple[list[str], str, int]:
    """Reads --distributed and --wait from the arguments of the command line.

    Returns:
      The other arguments, and the values of these two.

    Raises:
      UsageError: a value cannot be right.
    """
    rest, flags = [], {"distributed": "auto", "wait": SECONDS}
    for argument in argv:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in flags:
            flags[name] = value if equals else ""
        else:
            rest.append(argument)
    if not (flags["wait"].isdecimal() and int(flags["wait"])):
        raise UsageError(f"--wait must be whole seconds, got {flags['wait']!r}")
    if flags["distributed"] not in ("auto", "none"):
        parse(flags["distributed"])
    return rest, flags["distributed"], int(flags["wait"])


def parse(text: str) -> tuple[str, int, int]:
    """ "10.0.0.1:1234,4,0" -> ("10.0.0.1:1234", 4, 0).

    Raises:
      UsageError: the text is not HOST:PORT,COUNT,INDEX.
    """
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


def join(distributed: str, seconds: int) -> None:
    """Meets the other processes. It must be called before anything that uses devices.

    From here on only process 0 prints to stdout, and if one process fails, all do.

    Args:
      distributed: "none", HOST:PORT,COUNT,INDEX, or "auto" to ask jax for the cluster
        (TPU pod, SLURM, Kubernetes, Open MPI), which may be none.
      seconds: how long to wait for the others.

    Raises:
      UsageError: some process did not come; the message says which one.
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
    threading.Thread(target=_watch, daemon=True).start()
    if not first():
        sys.stdout = open(os.devnull, "w")


def detect(seconds: int) -> tuple[str, int, int] | None:
    """Asks jax for the cluster that started this process.

    Returns:
      The address, the number of processes, and which one this is; None without a cluster.

    Raises:
      UsageError: there are signs of a cluster, but jax cannot tell its hosts.
    """
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


def meet(address: str, count: int, index: int, seconds: int) -> None:
    """Waits until all processes have called process 0 at the address.

    jax's own wait would end in a crash that names nobody.

    Raises:
      UsageError: some process did not come; the message says which one.
    """
    if index:
        message = _call(address, index, seconds)
    else:
        message = _listen(address, count, seconds)
    if message:
        raise UsageError(message)


def _listen(address: str, count: int, seconds: int) -> str:
    """In process 0, waits for the others; returns (and sends them) what went wrong.

    The message is "" if all processes came.
    """
    calls, shown, deadline = {}, -math.inf, time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_open_port(address))
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
                caller = stack.enter_context(server.accept()[0])
                caller.settimeout(5)
                calls[int(caller.recv(16))] = caller
        message = f"waited {seconds} s in vain for {who}" if missing else ""
        for caller in calls.values():
            with contextlib.suppress(OSError):
                caller.sendall(f"{GREETING} {message}\n".encode())
    return message


def _open_port(address: str) -> socket.socket:
    """A socket that listens at the port of the address on every interface."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    place = ("", int(address.rpartition(":")[2]))
    try:
        return socket.create_server(place, family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UsageError(f"cannot listen at {address}: {error}") from None


def _call(address: str, index: int, seconds: int) -> str:
    """In another process, calls process 0; returns what it answers.

    The answer is "" when all processes have called it.
    """
    print(f"host {index} waits for host 0 at {address}", file=sys.stderr, flush=True)
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            place = (host.strip("[]"), int(port))
            with socket.create_connection(place, timeout=left) as connection:
                # From here on it is process 0 that waits.
                connection.settimeout(seconds + 10)
                connection.sendall(str(index).encode())
                answer = connection.makefile(errors="replace").readline()
            if answer.startswith(GREETING):
                return answer.removeprefix(GREETING).strip()
        time.sleep(0.3)
    return f"host {index} waited {seconds} s in vain for host 0 at {address}"


class Preempted(RuntimeError):
    """A host was told to stop; what was done so far is saved.

    number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def signals() -> Iterator[Callable[[int], int]]:
    """Listens for SIGTERM and SIGINT (Ctrl-C), which ask a run to stop.

    A second signal does what it does elsewhere: it ends this process at once.

    Yields:
      A function: step -> the signal because of which to stop after this step, or 0, because
      some host got one. All hosts must call it after every step; they agree on the step to
      stop after. Of several hosts, only SIGTERM is answered, which jax listens for.
    """
    if joined().client:
        from jax.experimental import multihost_utils

        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reached(step) else 0
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: 0  # only the main thread may listen
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPPING}

    def come(number: int, frame: Any) -> None:
        came.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    try:
        for number in STOPPING:
            signal.signal(number, come)
        yield lambda step: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def joined() -> Any:
    """jax's state of a run of several processes: client (None if alone), process_id."""
    from jax._src import distributed

    return distributed.global_state


def _first_failure() -> Failure | None:
    """The failure of the first process that failed, or None."""
    try:
        code, who, text = joined().client.key_value_try_get(FAILED).split(" ", 2)
    except Exception:  # there is no such key, or no server any more
        return None
    return int(code), int(who), text


def _watch() -> None:
    """Ends this process when another one has failed; collectives would wait for ever."""
    while not (other := _first_failure()):
        time.sleep(1)
    ENDING.acquire()
    _follow(*other)


def _follow(code: int, who: int, text: str) -> NoReturn:
    """Ends this process because another one has failed."""
    print(f"stopped, as host {who} has failed: {text}", file=sys.stderr)
    _end(code)


def fail(code: int, error: BaseException) -> None:
    """Ends this process and tells the others why it fails, if there are others.

    Args:
      code: the exit code of all.
      error: the reason.
    """
    if "jax" not in sys.modules or joined().client is None:
        return
    ENDING.acquire()
    if other := _first_failure():  # the error here may only be its consequence
        _follow(*other)
    if not isinstance(error, UsageError):
        traceback.print_exception(error)
    with contextlib.suppress(Exception):
        text = f"{code} {joined().process_id} {error}"
        joined().client.key_value_set(FAILED, text)
    _end(code)


def _end(code: int) -> NoReturn:
    """Exits at once: the ordinary way waits for the other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0 if joined().process_id else 3)  # process 0 tells the others
    os._exit(code)


def first() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return joined().process_id == 0


def once(function: Function) -> Function:
    """Decorates a function that process 0 alone shall run.

    All processes must call it, in the same order, and all return what it returned, which
    must be plain values of JSON. If it raises, all processes do: process 0 the same error,
    the others a UsageError or a RuntimeError with its text.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        connection = joined().client
        if connection is None:
            return function(*args, **kwargs)
        key = f"advadapters/once/{next(CALLS)}"
        if not first():
            return _unpack(connection.blocking_key_value_get(key, LONG))
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            connection.key_value_set(key, _pack(None, error))
            raise
        connection.key_value_set(key, _pack(result, None))
        return result

    return run  # pyright: ignore[reportReturnType]


def share(value: Any) -> list[Any]:
    """Exchanges a value of each process. All must call it, in the same order.

    Args:
      value: plain values of JSON, below 4 MB.

    Returns:
      The values of all processes, by their numbers.
    """
    state, connection = joined(), joined().client
    if connection is None:
        return [value]
    key = f"advadapters/share/{next(CALLS)}"
    connection.key_value_set(f"{key}/{state.process_id}", json.dumps(value))
    texts = (
        connection.blocking_key_value_get(f"{key}/{number}", LONG)
        for number in range(state.num_processes)
    )
    return [json.loads(text) for text in texts]


def _pack(result: Any, error: Exception | None) -> str:
    """What a function returned or raised, as text for `_unpack`."""
    message = {"result": result}
    if error:
        message = {"usage": isinstance(error, UsageError), "error": str(error)}
    return json.dumps(message)


def _unpack(text: str) -> Any:
    """Returns or raises what `_pack` wrote."""
    message = json.loads(text)
    if "error" in message:
        raise (UsageError if message["usage"] else RuntimeError)(message["error"])
    return message["result"]
