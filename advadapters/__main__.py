"""The command line: `advadapters VERB`, also `python -m advadapters VERB`."""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from logging import CRITICAL, getLogger

from absl import logging

from advadapters import files, flags, hosts
from advadapters.errors import UsageError

INTERRUPTED = 128 + signal.SIGINT
VERBS = {
    "train": "train a network, evaluate its modes and the soups between them",
    "evaluate": "clean and robust accuracy of mixtures of a trained network",
    "transfer": "attacks through one network of a run, tried on its others",
    "soup": "several trained networks as one run, to be mixed",
    "season": "fine-tune a robust network to other threats, and mix them",
    "select": "a soup for each shift from a few labelled images, judged on others",
    "report": "tables and pictures of finished runs, beside the papers' numbers",
    "extract": "one network out of a run, as a run of its own",
    "convert": "pretrained weights of other programs as a file of this one's",
    "export": "a trained network, or all of its soups, as one file for other programs",
    "dryrun": "compile the training step for devices that need not be there",
    "papers": "what the trainings of the papers' workflows cost, at best, on which chips",
    "config": "the whole config that a file makes, explained; or all that there are",
    "doctor": "versions, devices, a write test, and how fast images come",
    "study": "train one config with different adapters or methods, and compare",
}


def usage() -> str:
    """The text of --help."""
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    return (
        "usage: advadapters VERB --flag=value ...\n\n"
        f"{verbs}\n\nadvadapters VERB --help tells about one verb. For all of them:\n\n"
        "  --distributed=auto  several processes as TPU pods, SLURM, Kubernetes and Open\n"
        "                      MPI start them; none; or HOST:PORT,COUNT,INDEX: where\n"
        "                      process 0 listens, how many there are, which this one is\n"
        "  --wait=300          seconds to wait for all of them"
    )


def keep_programs() -> None:
    """Tells jax, before it is imported, to keep what it compiles for the next run.

    Programs go to a folder of the user's cache. JAX_COMPILATION_CACHE_DIR names another
    folder, or none if it is empty.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(base, "advadapters", "xla")
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
      argv: the verb and its flags, those of the process by default.

    Returns:
      The exit code: 0, 2 for bad input, 143 for a run that SIGTERM stopped, 130 for one
      that Ctrl-C stopped, or 74 where files could not be written. A run that fails in
      another way raises, and Python then makes it 1.
    """
    alone, argv = argv is None, sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv else "--help"
    if verb in ("--help", "-h", "help"):
        print(usage())
        return 0
    if verb not in VERBS:
        print(
            f"advadapters: unknown verb {verb!r}; there are: {', '.join(VERBS)}",
            file=sys.stderr,
        )
        return 2
    # Orbax warns of what we ask it for, and logs errors that it raises too.
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)
    command = importlib.import_module(f"advadapters.commands.{verb}")
    if {"--help", "-h"} & set(argv[1:]):
        print(flags.describe(command.__doc__, flags.taken_by(command.main)))
        return 0
    try:
        rest, distributed, seconds = hosts.read_flags(argv[1:])
        keep_programs()
        hosts.join(distributed, seconds)
        return command.main(flags.read(flags.taken_by(command.main), rest))
    except UsageError as error:
        print(f"advadapters {verb}: {error}", file=sys.stderr)
        hosts.fail(2, error)
        return 2
    except hosts.Preempted as error:
        print(f"{error}; the same command goes on from there", flush=True)
        return 128 + error.number
    except KeyboardInterrupt as error:
        print(f"advadapters {verb}: stopped by Ctrl-C", file=sys.stderr)
        hosts.fail(INTERRUPTED, error)
        return INTERRUPTED
    except BaseException as error:
        if reason := files.trouble(error):
            print(f"advadapters {verb}: {reason}", file=sys.stderr)
            hosts.fail(files.TROUBLE, error)
            if alone:  # writers that are left would all fail once more at the end
                sys.stdout.flush()
                os._exit(files.TROUBLE)
            return files.TROUBLE
        hosts.fail(1, error)
        raise


if __name__ == "__main__":
    sys.exit(main())
