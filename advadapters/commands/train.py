"""usage: advadapters train --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

Trains a network as the config says, evaluates each mode and the soups between and
beyond them, and writes to DIR:

  config.json     the config; a second run on DIR resumes, and refuses another config, but
                  for keys that change nothing of what was trained (a longer
                  --config.epochs=... among them); history.json tells these changes
  data.json       names of the classes, images of each, and fingerprints of the images
  parameters.txt  every parameter: shape and size, shared and adapters
  checkpoints/    the newest states, and the best one where images are held out
  metrics.jsonl   a line per logged step: means since the last line of loss, loss/VIEW,
                  accuracy/VIEW, gradient_norm and weight_norm (L2, of what is trained),
                  nonfinite (skipped updates in a row), learning_rate,
                  images_per_second, seconds_left, waiting (share of the time in which
                  the devices had done all steps they were given and the next batch was
                  not there yet); lines of their own: validation/VIEW
  events.out.*    the same for TensorBoard
  results.json    accuracy of every mixture, with counts and 95% intervals
  results.md      the same as a table
  results.npz     what each network says of each test image
  tradeoff.png    robust against clean accuracy
  adapters.npz    where something is frozen: what was trained, kilobytes, to be used by
                  `advadapters evaluate --adapters` on any run with the same backbone

{flags}

Any value of the config can be overridden: --config.optimizer.base_lr=1e-3; numbers
may be fractions: --config.attacks.linf.eps=8/255. --config.attacks.linf.eps_warmup=5.0
lets that radius grow from 0 over the first 5 epochs of training, in any training method.
Exit code 2 means bad input. SIGTERM ends the run after a step, with a checkpoint, and exit
code 143.
"""

import dataclasses
import sys
import time
from typing import Annotated

from advadapters.flags import ConfigFile, Shown
from advadapters.schema import Between


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    config: ConfigFile
    workdir: Annotated[str, Shown("DIR"), "the folder of the run, a new one or its own"]
    profile: Annotated[
        int | None,
        Between(low=1),
        Shown("5"),
        "writes a trace of so many steps to DIR/profile, for TensorBoard's profile plugin "
        "(xprof), and prints what they spent their time on. The first three steps of the "
        "call are left out: one compiles, two fill queues",
    ] = None


def main(flags: Flags) -> int:
    """Returns the exit code."""
    clock = [time.monotonic()]
    config = flags.config.read()
    from advadapters.runs import opening, training
    from advadapters.training.loop import Diverged

    clock.append(time.monotonic())
    run = opening.open_run(config, flags.workdir, flags.config.keys)
    clock.append(time.monotonic())
    try:
        return training.train(run, clock, flags.profile)
    except Diverged as error:
        print(f"advadapters train: {error}", file=sys.stderr)
        return 1
