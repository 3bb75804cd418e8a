"""All that an accelerator has to answer, in the minutes that there are.

  python tests/benchmarks/accelerator.py --output=DIR [--minutes=9] [--parts=...]
      [--size=full|cpu|small] [--networks=b16,...] [--methods=cotrain,...] [--batch=...]
      [--pgd=2] [--torch=yes|no]

The parts, in order of worth: ceilings of the device, correctness against the CPU, steps of
training, their pieces, cascades (AutoAttack), soups, and in the time that is left the queue
of experiments (`parts/queue.py`). Sizes follow from the device: `full` on an accelerator,
`cpu` where there is none; `small` runs every part in seconds. Each part's docstring says
what it measures, beside torch where that is installed.

DIR/results.json is written after every row, and a table is printed at the end. What is
there already is not measured again: a later call goes on, on a device of the same kind and
with the same libraries. What fails is told in its row and stops nothing else: a worker
process measures, and this one starts another where it is lost or hangs. Exit code 0: no row
failed; 1: some did; 2: bad input.
"""

import argparse
import multiprocessing
import os
import pathlib
import sys
import time

BEGAN = time.time()
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for reference_networks

from parts import METHODS, PARTS, SIZES, queue, tables, worker  # noqa: E402
from parts.record import Record  # noqa: E402
from parts.shapes import REFERENCES, SHAPES  # noqa: E402

GRACE = 5  # seconds after the time that a process has to end


def read(argv):
    """The options as plain values; exits with code 2 for what is none."""
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    named = lambda text: text.split(",") if text else []  # noqa: E731
    parser.add_argument("--output", required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", type=named, default=[*PARTS, queue.NAME])
    parser.add_argument("--size", choices=SIZES, default="")
    parser.add_argument("--networks", type=named, default=[])
    parser.add_argument("--methods", type=named, default=[])
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--pgd", type=int, default=2)
    parser.add_argument("--torch", choices=("yes", "no"), default="yes")
    options = vars(parser.parse_args(argv))
    known = {
        "parts": (*PARTS, queue.NAME),
        "networks": (*SHAPES, *REFERENCES),
        "methods": METHODS,
    }
    for key, names in known.items():
        if unknown := set(options[key]).difference(names):
            told = f"--{key}: unknown {min(unknown)!r}; there are: {', '.join(names)}"
            parser.error(told)
    return options


def main(argv, began=BEGAN):
    """Measures, prints the table, and returns the exit code."""
    options = read(argv)
    until = began + 60 * options["minutes"]
    # Both libraries share the device's memory, and jax would take most of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if watch(options, began, until) == worker.REFUSED:
        return 2
    record = Record(options["output"])
    if queue.NAME in options["parts"]:
        queue.work(record, until)
    print(tables.told(record.content))
    return int(tables.failed(record.rows))


def work(*arguments):
    """What the worker's process runs."""
    worker.work(*arguments)


def watch(options, began, until, target=work):
    """Starts workers until one ends well or nothing more comes of them; its exit code."""
    while True:
        before = Record(options["output"]).rows
        process = multiprocessing.get_context("spawn").Process(
            target=target, args=(options, began, until)
        )
        process.start()
        try:
            process.join(max(until + GRACE - time.time(), 0))
            late = process.is_alive()
        finally:
            end(process)
        code = process.exitcode
        if code in (worker.FINISHED, worker.REFUSED) and not late:
            return code
        record = Record(options["output"])
        why = "the time was up" if late else f"its process ended with code {code}"
        record.close_running(why)
        print(f"accelerator: a worker was lost: {why}", file=sys.stderr)
        if late or record.rows == before:
            return code


def end(process):
    """Ends a process of multiprocessing that runs on."""
    if process.is_alive():
        process.terminate()
        process.join(GRACE)
    if process.is_alive():
        process.kill()
        process.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
