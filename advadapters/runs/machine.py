"""The CPU, the memory and the devices that a process has."""

import os
import pathlib
import platform


def host() -> dict[str, str | int]:
    """The CPU of this host, the cores that we may use, and memory."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        models = []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 2**30:.0f} GiB",
    }


def devices() -> dict[str, int]:
    """{kind of device: how many there are}, over all processes."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
