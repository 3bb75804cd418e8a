"""usage: advadapters evaluate --workdir=DIR [--mixture=... --suite=... --examples=N]

Clean and robust accuracy of mixtures of a trained network's adapters, each attacked
through itself, on the test images.

{flags}

Prints a table of what is asked for, and adds it to what was evaluated before: the rows
to DIR/NAME.json, and what each network says of each image to a file for each suite in
DIR/NAME/, for `select` and `report`. What is there is not evaluated again; other settings
of a suite make another file, and the one that was asked for last counts. Under several
attacks of one call, "union" is the robustness to all of them. AutoAttack records every
batch under DIR/autoattack, and goes on from there when it is started again; of its images
only who is right is kept.
"""

from advadapters.runs.requests import Request, evaluate


def main(flags: Request) -> int:
    """Returns the exit code."""
    evaluate(flags)
    return 0
