"""Our AutoAttack beside the official one's figures on the reference networks.

  python tests/benchmarks/autoattack.py [ANCHOR ...] [--seed=0] [--json=FILE]

Anchors: vit_linf, cnn_l2, cnn_l1 (default: all), 500 images each. Prints accuracy,
forward counts, CPU and wall seconds per stage, compile time apart. The official
figures were measured on a two-core CPU machine with torch 2.13.0.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax  # noqa: E402
import reference_networks as reference  # noqa: E402

from advadapters.attacks import autoattack  # noqa: E402


def main(argv):
    """Runs the anchors named and prints a table for each."""
    options = dict(a.removeprefix("--").split("=") for a in argv if a.startswith("--"))
    names = [a for a in argv if not a.startswith("--")] or list(reference.OFFICIAL)
    results = {}
    for name in names:
        anchor = reference.OFFICIAL[name]
        images, labels = reference.data()
        key = jax.random.key(int(options.get("seed", 0)))
        network = reference.network(anchor["model"])
        report = autoattack(
            network, images, labels, key, norm=anchor["norm"], eps=anchor["eps"]
        )
        results[name] = {"stages": report.stages, "costs": report.costs}
        show(name, anchor, report)
    if "json" in options:
        pathlib.Path(options["json"]).write_text(json.dumps(results, indent=1) + "\n")


def show(name, anchor, report):
    """One anchor's table: ours / official."""
    print(f"{name}: clean {100 * report.clean_accuracy:.1f} / {100 * anchor['clean']:.1f}")
    total = dict(cpu_seconds=0.0, seconds=0.0)
    for stage, official in anchor["stages"].items():
        cost = report.costs[stage]
        print(
            f"  {stage:8} accuracy {100 * report.stages[stage]:5.1f} / "
            f"{100 * official['accuracy']:5.1f}   forwards {cost['forwards']:9,} / "
            f"{official['forwards']:9,} (+{cost['padding']:,} padding)   CPU s "
            f"{cost['cpu_seconds']:6.1f} / {official['cpu_seconds']:6.1f}   wall s "
            f"{cost['seconds']:6.1f} / {official['seconds']:6.1f}   compile s "
            f"{cost['compile_seconds']:.1f}",
            flush=True,
        )
        for kind in total:
            total[kind] += cost[kind]
    sums = {k: sum(s[k] for s in anchor["stages"].values()) for k in total}
    print(
        f"  total    CPU s {total['cpu_seconds']:.1f} / {sums['cpu_seconds']:.1f}, wall s "
        f"{total['seconds']:.1f} / {sums['seconds']:.1f}, compile s "
        f"{sum(c['compile_seconds'] for c in report.costs.values()):.1f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
