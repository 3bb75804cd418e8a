"""The table that is printed last, of what `record.Record` holds; plain values, no jax."""

TITLES = {
    "ceilings": ("of the device", "rate", "seconds (quartiles)"),
    "correctness": ("against the CPU", "passed", "errors (tolerances)"),
    "steps": (
        "training step", "images", "images/s", "TFLOP/s", "of the products' rate",
        "memory, GiB", "compile s (torch)", "times torch (quartiles)",
    ),
    "pieces": ("piece", "forward, ms", "input's gradient, ms", "all gradients, ms"),
    "cascades": (
        "AutoAttack", "images", "robust after each stage", "forward passes (official)",
        "seconds (compiling)", "same verdict as official", "times official",
    ),
    "soups": ("evaluation", "soups x images", "passes/s", "times the floor (quartiles)"),
    "queue": ("experiment", "ended"),
}  # fmt: skip


def told(content):
    """All tables as text."""
    setting = ", ".join(f"{name} {value}" for name, value in content["setting"].items())
    commits = {sitting["commit"] or "unknown" for sitting in content["sittings"]}
    lines = [f"{setting}; commit {', '.join(sorted(commits))}"]
    for part, titles in TITLES.items():
        rows = content["rows"].get(part, {})
        if rows:
            lines += ["", line(titles), line(["---"] * len(titles))]
            lines += [line([name, *cells(part, row)]) for name, row in rows.items()]
        lines += profile(rows)
    return "\n".join(lines)


def failed(rows):
    """Whether any row has an error, or a check that did not pass."""
    every = [row for part in rows.values() for row in part.values()]
    return any("error" in row or row.get("passed") is False for row in every)


def line(texts):
    """One line of a table."""
    return f"| {' | '.join(texts)} |"


def cells(part, row):
    """What a row says after its name."""
    for why in ("error", "skipped"):
        if why in row:
            return [f"{why}: {row[why]}".replace("\n", " ").replace("|", "/")[:160]]
    return CELLS[part](row)


def spread(values, factor=1.0):
    """The median and quartiles as text."""
    low, middle, high = (f"{factor * value:.4g}" for value in values)
    return f"{middle} ({low}-{high})"


def ceilings(row):
    """A rate, if it is one, and seconds."""
    rate = ""
    if "flops_per_second" in row:
        rate = f"{row['flops_per_second'] / 1e12:.4g} TFLOP/s"
    if "bytes_per_second" in row:
        rate = f"{row['bytes_per_second'] / 1e9:.4g} GB/s"
    return [rate, spread(row["seconds"])]


def correctness(row):
    """Each error with its tolerance."""
    errors = [
        f"{name} {error:.2g} ({row['tolerances'][name]:.2g})"
        for name, error in row["errors"].items()
    ]
    return ["yes" if row["passed"] else "NO", ", ".join(errors)]


def steps(row):
    """Speed, memory, torch."""
    memory = row["memory_peak"] or row["memory_planned"]
    compiling = f"{row['compile_seconds']:.0f}"
    if "torch_compile_seconds" in row:
        compiling += f" ({row['torch_compile_seconds']:.0f})"
    return [
        str(row["batch"]),
        f"{row['images_per_second']:.4g}",
        f"{row['flops_per_second'] / 1e12:.4g}",
        f"{100 * row['share']:.0f}%" if "share" in row else "",
        f"{memory / 2**30:.2f}{'' if row['memory_peak'] else ' planned'}",
        compiling,
        spread(row["times_torch"]) if "times_torch" in row else "",
    ]


def profile(rows):
    """Lines about the profiles of steps."""
    lines = []
    for name, row in rows.items():
        found = row.get("profile", {})
        if "kinds" in found:
            for table in ("kinds", "parts"):
                told = [f"{key} {100 * x:.1f}%" for key, x in found[table].items()]
                lines += ["", f"{name}, {table} of the device's time: {', '.join(told)}"]
            lines.append(f"({100 * found['waiting']:.1f}% of the time it waited)")
        elif "error" in found:
            lines += ["", f"{name}: no profile: {found['error']}"]
    return lines


def pieces(row):
    """Milliseconds of each pass."""
    passes = ("forward", "input_gradient", "all_gradients")
    return [spread(row[name], 1e3) if name in row else "" for name in passes]


def cascades(row):
    """Ours, and the official one's."""
    other = row.get("official", {})
    there = "seconds" in other
    stages = " / ".join(f"{100 * value:.1f}" for value in row["stages"].values())
    seconds = f"{row['seconds']:.1f} ({row['compile_seconds']:.0f})"
    return [
        str(row["images"]),
        stages + (f" (official {100 * other['robust_accuracy']:.1f})" if there else ""),
        f"{row['forwards']}" + (f" ({other['forwards']})" if there else ""),
        seconds,
        f"{100 * other['agrees']:.1f}%" if there else other.get("missing", "not asked"),
        f"{other['times_official']:.3g}" if there else "",
    ]


def soups(row):
    """Passes and floor."""
    return [
        f"{row['soups']} x {row['images']}",
        f"{row['passes_per_second']:.4g}",
        spread(row["times_floor"]),
    ]


def queue(row):
    """An experiment that is through."""
    return [f"after {row['seconds_spent']:.0f} s of its last sitting"]


CELLS = {
    "ceilings": ceilings, "correctness": correctness, "steps": steps, "pieces": pieces,
    "cascades": cascades, "soups": soups, "queue": queue,
}  # fmt: skip
