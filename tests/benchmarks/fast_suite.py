"""AutoAttack's version "fast" beside "standard": agreement, forward passes, seconds.

  python tests/benchmarks/fast_suite.py [NETWORK ...] [--images=500] [--seed=0]
      [--order] [--versions=standard,fast,fast+standard] [--glyphs=FILE.npz] [--json=FILE]

Networks: vit_linf, cnn_l2, cnn_l1 of tests/reference, and glyphs_linf, glyphs_l2, which
need the file that glyphs.py writes (default: the first three). With --order the attacks
that "fast" could have are run alone instead, and put in the order of images broken per
forward pass, each on what those before it left: that is how "fast" was put together.
"""

import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import reference_networks as reference  # noqa: E402

from advadapters.attacks import autoattack  # noqa: E402

# What "fast" could be made of: (attack, settings).
NEAR = dict(candidates=100)  # targets as MALT chooses them
PARTS = (
    ("apgd-ce", dict(restarts=1, steps=100)),
    *((f"pma-{first}", dict(steps=n)) for first in ("own", "rival") for n in (20, 100)),
    ("apgd-t", dict(targets=9, steps=100)),
    *(("malt", dict(targets=t, steps=n)) for t in (1, 3) for n in (20, 100)),
    ("malt", dict(targets=9, steps=100)),
    *(("fab-t", dict(targets=3, steps=n) | NEAR) for n in (20, 100)),
    ("square", dict(queries=500)),
)


def threat(name, options):
    """(logits_fn, images, labels, norm, eps) of a network's name."""
    count = int(options.get("images", 500))
    if name.startswith("glyphs"):
        import glyphs

        network, images, labels = glyphs.load(options["glyphs"])
        norm, eps = glyphs.THREATS[name]
        return network, images[:count], labels[:count], norm, eps
    anchor = reference.OFFICIAL[name]
    network = reference.network(anchor["model"])
    return network, *reference.data(count), anchor["norm"], anchor["eps"]


def attacked(given, version, seed, programs):
    """The Report of a version."""
    network, images, labels, norm, eps = given
    return autoattack(
        network, images, labels, jax.random.key(seed), norm=norm, eps=eps,
        version=version, programs=programs, quiet=True,
    )  # fmt: skip


def cost(report):
    """Sums over the stages of a report."""
    kinds = ("forwards", "cpu_seconds", "seconds", "compile_seconds")
    return {kind: sum(c[kind] for c in report.costs.values()) for kind in kinds}


def compare(name, given, seed, versions):
    """Runs the versions, prints a line for each and how it agrees with the first."""
    programs, rows, first = {}, {}, None
    for version in versions:
        report = attacked(given, version, seed, programs)
        first = report if first is None else first
        only = {
            f"{versions[0]} only": int((~first.robust & report.robust).sum()),
            f"{version} only": int((first.robust & ~report.robust).sum()),
        }
        share = cost(report)["forwards"] / cost(first)["forwards"]
        rows[version] = dict(stages=report.stages, costs=report.costs, only=only)
        stages = ", ".join(f"{k} {100 * v:.1f}" for k, v in report.stages.items())
        told = ", ".join(f"{k} {v:,.1f}" for k, v in cost(report).items())
        print(f"{name} {version}: {stages}; {told} ({share:.3f}); {only}", flush=True)
    return rows


def order(name, given, seed, _):
    """Runs every part alone; prints the greedy order by images broken per forward pass.

    A part's passes are counted as those on an image that withstands it.
    """
    programs, parts, left = {}, {}, None
    for attack, settings in PARTS:
        report = attacked(given, ((attack, settings),), seed, programs)
        told = f"{attack} " + " ".join(f"{k}={v}" for k, v in settings.items())
        right = report.broken_by != "clean"
        passes = settings.get("targets", 1) * (settings.get("steps", 0) + 1)
        passes *= 2 if attack.startswith("fab") else 1
        passes += settings.get("queries", 0)
        if attack == "malt" or "candidates" in settings:
            passes += min(100, given[0](given[1][:1]).shape[1] - 1)
        parts[told] = (~report.robust & right, passes)
        left = right if left is None else left
        print(f"{name} {told}: robust {100 * report.robust_accuracy:.1f}, ", end="")
        print(f"forwards {cost(report)['forwards']:,}, {passes} an image", flush=True)
    found, spent, todo = [], 0, dict(parts)
    while todo and left.any():
        gain = {k: (left & b).sum() / (left.sum() * p) for k, (b, p) in todo.items()}
        best = max(gain, key=gain.get)
        if not gain[best]:
            break
        broken, passes = todo.pop(best)
        spent += int(left.sum()) * passes
        left = left & ~broken
        found.append((best, int(left.sum()), spent))
        print(f"{name}: then {best}: {left.sum()} left, {spent:,} passes", flush=True)
    packed = {told: np.flatnonzero(broken).tolist() for told, (broken, _) in parts.items()}
    return dict(order=found, broken=packed)


def main(argv):
    """Runs the networks named."""
    options = dict(
        (a.removeprefix("--") + "=1").split("=")[:2] for a in argv if a[0] == "-"
    )
    names = [a for a in argv if a[0] != "-"] or list(reference.OFFICIAL)
    work = order if "order" in options else compare
    versions = options.get("versions", "standard,fast,fast+standard").split(",")
    results = {}
    for name in names:
        given = threat(name, options)
        results[name] = work(name, given, int(options.get("seed", 0)), versions)
        if "json" in options:
            pathlib.Path(options["json"]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
