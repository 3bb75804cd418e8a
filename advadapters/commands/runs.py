"""A run in a workdir: what the verbs share, put together from the parts."""

import functools
import itertools
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from advadapters import attacks, builders, checkpoints, trees
from advadapters import mesh as meshes
from advadapters.adapters import files
from advadapters.commands import starting, workdir
from advadapters.data.sources import Subset
from advadapters.errors import UsageError
from advadapters.evaluation import accuracy, shifts, tables
from advadapters.training import loop
from advadapters.training import state as states

# Keys of config.model that change no result of evaluation.
TRAINING_ONLY = ("drop_path", "dropout", "dtype", "remat")


class OpenRun(NamedTuple):
    """A run with its mesh and its folder."""

    run: builders.Run
    mesh: Any
    folder: Any
    counters: dict  # what was compiled or counted once, see `counter_of`, `flops_of`


def open_run(config, path):
    """Builds everything first, so that bad input leaves no trace, then the folder."""
    mesh = meshes.make()
    run = builders.build(config, mesh)
    if run.start and not workdir.holds_run(path):
        starting.read(run)
    return OpenRun(run, mesh, workdir.open_workdir(path, config), {})


def write_run(config, path, make):
    """A new run that holds a finished state which nothing trained; returns it opened.

    make: abstract variables of the config -> variables. All that can fail comes before
    the folder is made. Raises UsageError if there is a run at the path already.
    """
    if workdir.holds_run(path):
        raise UsageError(f"{path} holds a run already: name a new folder")
    mesh = meshes.make()
    run = builders.build(config, mesh)
    like = jax.eval_shape(functools.partial(builders.initial_state, run))
    variables = make(like.variables)
    state = states.create(variables, run.tx)
    new = OpenRun(run, mesh, workdir.open_workdir(path, config), {})
    with open_checkpoints(new) as saved:
        saved.save(run.steps, state.replace(step=state.step + run.steps))
    return new


def open_checkpoints(opened, read_only=False):
    """The checkpoints of a run; read_only leaves a running trainer's files alone."""
    run = opened.run
    return checkpoints.Checkpoints(
        opened.folder / "checkpoints",
        keep=run.keep,
        best=bool(run.every.validate),
        read_only=read_only,
    )


def abstract_state(opened):
    """Shapes, types and places of the training state."""
    make = functools.partial(builders.initial_state, opened.run)
    return checkpoints.abstract(jax.eval_shape(make), meshes.replicated(opened.mesh))


def first_state(opened):
    """The state before the first step, from config.start if it names a run or a file."""
    run, place = opened.run, meshes.replicated(opened.mesh)
    plain = starting.read(run) if run.start else None
    if plain:
        print(f"first parameters: {starting.describe(run.start)}")
    make = functools.partial(builders.initial_state, run)
    return jax.jit(make, out_shardings=place)(plain)


def train(opened):
    """Trains (or resumes), evaluates, writes the results; returns the exit code."""
    run, folder = opened.run, opened.folder
    abstract = abstract_state(opened)
    with open_checkpoints(opened) as saved:
        start = saved.latest() or 0
        finished = workdir.read_results(folder) if start == run.steps else None
        if finished:
            print(f"{folder}: finished already, {run.steps} steps; nothing to do")
            print(tables.markdown(finished))
            return 0
        print_head(opened, abstract, start)
        state = saved.restore(abstract, start) if start else first_state(opened)
        if start < run.steps:
            state = train_steps(opened, saved, state, start)
    variables = states.averaged(state)
    rows = evaluate(opened, variables, run.data.test, run.steps)
    # A few frozen numbers, like an encoding, are no backbone.
    backbone = trees.count(variables["frozen"]) > trees.count(states.trained(variables))
    told = write_adapters(opened, variables) if backbone else ""
    workdir.write_results(folder, rows)
    print(tables.markdown(rows))
    print(f"written to {folder}: results.json, results.md, tradeoff.png{told}")
    return 0


def write_adapters(opened, variables):
    """Writes adapters.npz, what is trained of the variables; tells its size."""
    file = opened.folder / "adapters.npz"
    save = functools.partial(files.save, settings=adapter_settings(opened))
    workdir.write_whole(file, lambda raw: save(raw, variables))
    size, whole = file.stat().length, 4 * trees.count(variables)
    return f", adapters.npz ({size / 1e3:,.0f} kB; the network has {whole / 1e3:,.0f} kB)"


def adapter_settings(opened):
    """What a file of adapters must share with a run besides the backbone's values.

    The domains and the model, without what is of training alone.
    """
    model = workdir.read_config(opened.folder)["model"]
    kept = {f"model.{k}": v for k, v in model.items() if k not in TRAINING_ONLY}
    return {"domains": opened.run.domains} | kept


def train_steps(opened, saved, state, start):
    """The training loop with its log, validation and checkpoints."""
    run, mesh = opened.run, opened.mesh
    log = workdir.Log(opened.folder, start)
    first = time.monotonic()

    def write(step, metrics):
        metrics = describe_speed(run, step, metrics)
        log.write(step, metrics)
        print(progress_line(run, step, metrics), flush=True)

    def validate(state, step):
        score, metrics = validation(opened, states.averaged(state))
        log.write(step, metrics)
        print(f"step {step} validation  " + numbers(metrics), flush=True)
        return score

    try:
        state = loop.run(
            state,
            builders.train_step(run, mesh),
            builders.train_batches(run, start),
            start=start,
            stop=run.steps,
            mesh=mesh,
            every=run.every,
            log=write,
            validate=validate,
            save=saved.save,
            limit=run.max_nonfinite,
        )
    finally:
        log.close()
    print(f"trained {run.steps - start} steps in {time.monotonic() - first:.0f} s")
    return state


def describe_speed(run, step, metrics):
    """Adds the learning rate, images/s and the seconds left."""
    seconds = metrics.pop("seconds_per_step")
    return metrics | {
        "learning_rate": float(run.schedule(step - 1)),
        "images_per_second": run.batch_size / seconds,
        "seconds_left": (run.steps - step) * seconds,
    }


def progress_line(run, step, metrics):
    """step 50/660  loss/clean 0.51  loss/linf 1.32  512 images/s  ETA 1:40"""
    shown = {k: v for k, v in metrics.items() if k.startswith(("loss/", "accuracy/"))}
    minutes, seconds = divmod(round(metrics["seconds_left"]), 60)
    skipped = metrics["nonfinite"]
    return (
        f"step {step}/{run.steps}  {numbers(shown)}  "
        f"{metrics['images_per_second']:.0f} images/s  ETA {minutes}:{seconds:02d}"
        + (f"  {skipped:.0f} updates in a row not finite, skipped" if skipped else "")
    )


def numbers(metrics):
    """{"loss/clean": 0.51234} -> "loss/clean 0.512"."""
    return "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def validation(opened, variables):
    """(score, metrics): accuracy of the method's checks on held-out images.

    The score is the mean with the checks' weights; the best checkpoint has the highest.
    """
    metrics, score, checks = {}, 0.0, opened.run.method.checks()
    for check in checks:
        attacks_ = check.attacks or (None,)
        found = [held_out(opened, variables, check.case, attack) for attack in attacks_]
        worst = metrics[f"validation/{check.name}"] = min(found)
        score += check.weight * worst
        if check.alarm:
            many = held_out(opened, variables, check.case, check.alarm)
            metrics[f"validation/{check.name}/alarm"] = many
            warn_of_overfitting(check.name, worst, many)
    return score / sum(check.weight for check in checks), metrics


def held_out(opened, variables, case, attack):
    """Accuracy of a network on the held-out images under an attack."""
    run = opened.run
    correct, examples = accuracy.accuracies(
        counter_of(opened, attack, case.width),
        variables,
        [case.knob],
        lambda: builders.eval_batches(run, run.data.validation),
        mesh=opened.mesh,
        at_once=1,
        progress=lambda *_: None,
    )
    return correct[0] / examples


def warn_of_overfitting(name, single, many):
    """Says so where an attack of more steps breaks most of what the view's own does not.

    Catastrophic overfitting (Wong et al. 2020): single-step training that has learnt to
    defeat its own attack only.
    """
    if many < 0.5 * single:
        print(
            f"warning: catastrophic overfitting of view {name}: accuracy "
            f"{100 * single:.1f}% under its own attack, {100 * many:.1f}% under its alarm",
            flush=True,
        )


def counter_of(opened, attack, width):
    """The jitted counter for an attack; made once a run, so that it is traced once."""
    run, made = opened.run, opened.counters
    if (attack, width) not in made:
        made[attack, width] = accuracy.make_counter(
            run.networks[width], attack, seed=run.seed, mesh=opened.mesh
        )
    return made[attack, width]


def evaluate(opened, variables, split, step, cases=None, suites=None):
    """Result rows: every case, clean and under every suite."""
    run = opened.run
    cases = run.evaluation.cases if cases is None else cases
    suites = {"clean": None} | (run.evaluation.suites if suites is None else suites)
    rows = []
    for name, attack in suites.items():
        counter = functools.partial(counter_of, opened, attack)
        for told, right, examples in count(opened, variables, split, cases, name, counter):
            rows.append(accuracy.row(told, name, right, examples, step))
    return rows


def count(opened, variables, split, cases, name, counter):
    """(what a row tells of the network, correct, examples) for every case.

    counter: width -> what counts, see `accuracy.make_counter`. name: for the progress line.
    """
    run, meter, found = opened.run, Meter(name, len(split)), []
    for width in dict.fromkeys(case.width for case in cases):
        same = [case for case in cases if case.width == width]
        correct, examples = accuracy.accuracies(
            counter(width),
            variables,
            [case.knob for case in same],
            lambda: builders.eval_batches(run, split),
            mesh=opened.mesh,
            at_once=run.evaluation.at_once,
            progress=meter.show,
        )
        for case, right in zip(same, correct, strict=True):
            found.append((case.told | flops_of(opened, case), right, examples))
    meter.close()
    return found


def evaluate_corrupted(opened, variables, split, step, cases, names, severities):
    """Result rows: every case clean, under each corruption and severity, and the means.

    Batches are corrupted on the devices, once for all cases of a call, and then counted
    as clean ones are: an image counts if the network is right after the corruption.
    """
    run = opened.run
    cases = run.evaluation.cases if cases is None else cases
    clean = evaluate(opened, variables, split, step, cases, {})
    rows = []
    for name, severity in itertools.product(names, severities):
        move = shifts.make_corrupt(name, severity, seed=run.seed, mesh=opened.mesh)

        def counter(width, move=move):
            right = counter_of(opened, None, width)
            return lambda variables, knobs, batch: right(variables, knobs, move(batch))

        suite = f"{name}-{severity}"
        for told, right, examples in count(opened, variables, split, cases, suite, counter):
            rows.append(shifts.row(told, name, severity, right, examples, step))
    classes = workdir.read_config(opened.folder)["model"]["classes"]
    imagenet = classes == 1000 and run.data.image_size == 224
    return clean + rows + shifts.summary(rows, imagenet)


def flops_of(opened, case):
    """{"flops": of one image's forward pass} where there are several widths."""
    run, known = opened.run, opened.counters
    if len(run.networks) == 1:
        return {}
    if ("flops", case.width) in known:
        return known["flops", case.width]
    network, data = run.networks[case.width], run.data
    plain = jax.eval_shape(network.init, jax.random.key(0))
    if case.knob.lam is not None:
        plain["lambda"] = jax.ShapeDtypeStruct((), np.float32)
    shape = (1, data.image_size, data.image_size, data.channels)
    images = jax.ShapeDtypeStruct(shape, np.float32)
    lowered = jax.jit(network.evaluate).lower(plain, images)
    known["flops", case.width] = {"flops": lowered.cost_analysis()["flops"]}
    return known["flops", case.width]


def autoattack(opened, variables, split, step, cases, *, version, norm, eps, adapters):
    """Result rows: AutoAttack on each case alone, clean and after the cascade.

    adapters: a name of the file of adapters in the variables, "" for the run's own.
    """
    run = opened.run
    batches = list(builders.eval_batches(run, split))
    mask = np.concatenate([batch["mask"] for batch in batches])
    stack = {
        key: np.concatenate([batch[key] for batch in batches])[mask]
        for key in ("images", "labels")
    }
    images = stack["images"].astype(np.float32) / np.float32(255)
    rows = []
    for case in cases:
        name, width = tables.name_of(case.told), run.networks[case.width]
        print(f"{name}: AutoAttack {version}, {norm} {eps:g}, {len(images)} images")
        network = jax.tree_util.Partial(width.evaluate, width.at(variables, case.knob))
        report = attacks.autoattack(
            network,
            images,
            stack["labels"],
            jax.random.key(run.seed),
            norm=norm,
            eps=eps,
            version=version,
            batch_size=run.evaluation.batch_size,
            mesh=opened.mesh if opened.mesh.size > 1 else None,
            resume=opened.folder
            / "autoattack"
            / (journal_name(case, step, norm, eps, version, len(images)) + adapters),
            progress=functools.partial(show_cascade, {}),
        )
        rows += report_rows(report, case.told, f"autoattack_{norm}_{eps:g}", step)
        if width.coarse:
            trained = jax.tree_util.Partial(width.apply, *network.args)
            sample = slice(None, attacks.checks.SAMPLE)
            share = attacks.checks.sign_agreement(
                trained, network, images[sample], stack["labels"][sample]
            )
            print(f"signs of gradients in training's precision: {100 * share:.1f}% agree")
            rows[-1]["sign_agreement"] = share
    return rows


def journal_name(case, step, norm, eps, version, count):
    """A folder name for one cascade."""
    told = case.told
    weights = "_".join(f"{weight:g}" for weight in told["mixture"].values())
    weights += "".join(f"-{key}{told[key]:g}" for key in ("lambda", "width") if key in told)
    return f"{version}-{norm}-{eps:.6g}-step{step}-{weights}-n{count}"


def show_cascade(starts, *, stage, round, rounds, done, total, robust):
    """A progress line after a batch of AutoAttack.

    starts: {stage: (time, share) of its first news}; a resumed stage does not begin at 0.
    """
    now = time.monotonic()
    share = (round - 1 + done / max(total, 1)) / rounds
    began, first = starts.setdefault(stage, (now, share))
    left = ""
    if share > first:
        left = f", ETA at most {(now - began) * (1 - share) / (share - first):.0f} s"
    print(
        f"{stage} {round}/{rounds}: {done}/{total} images, robust {100 * robust:.1f}%, "
        f"{100 * share:.0f}% of this attack{left}",
        file=sys.stderr,
        flush=True,
    )


def report_rows(report, told, suite, step):
    """The rows of one AutoAttack report: clean, and robust with all that was found."""
    count = len(report.robust)
    clean = accuracy.row(
        told, "clean", int((report.broken_by != "clean").sum()), count, step
    )
    robust = accuracy.row(told, suite, int(report.robust.sum()), count, step)
    for warning in report.warnings:
        print(f"warning: {warning['message']}")
    stages = ", ".join(f"{name} {100 * v:.1f}%" for name, v in report.stages.items())
    print(f"accuracy after each stage: {stages}")
    return [
        clean,
        robust
        | {"stages": report.stages, "costs": report.costs, "warnings": report.warnings},
    ]


class Meter:
    """A progress line for one suite: rewritten on a terminal, else every 10 s."""

    def __init__(self, name, size):
        self.name, self.size = name, size
        self.started = self.shown = time.monotonic()

    def show(self, group, groups, examples):
        """Called after each batch."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if now - self.shown < (0.2 if terminal else 10):
            return
        self.shown = now
        done = (group + min(1, examples / self.size)) / groups
        left = (now - self.started) * (1 - done) / done
        end = "\r" if terminal else "\n"
        text = f"evaluating {self.name}: {100 * done:.0f}%  ETA {left:.0f} s   "
        print(text, end=end, file=sys.stderr, flush=True)

    def close(self):
        """The last word."""
        seconds = time.monotonic() - self.started
        print(f"evaluated {self.name} in {seconds:.0f} s", flush=True)


def print_head(opened, abstract, start):
    """What is trained: devices, parameters per branch, what each view attacks."""
    from clu import parameter_overview

    run = opened.run
    variables = abstract.variables
    table = parameter_overview.get_parameter_overview(variables, include_stats=False)
    (opened.folder / "parameters.txt").write_text(table + "\n")
    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    print(parameter_table(variables, run.patterns, run.domains))
    stats = variables["stats"]
    if jax.tree.leaves([stats["shared"], stats["adapters"]]):
        kind = "of each view and domain" if run.separate else "pooled over the views"
        print(f"batch statistics: {kind}")
    print("\n".join(run.method.describe()))
    print(
        f"{'resuming at' if start else 'starting at'} step {start} of {run.steps}, "
        f"batch {run.batch_size}, {len(run.data.train)} training images",
        flush=True,
    )


def parameter_table(variables, patterns, domains):
    """Counts per branch: shared, each adapter pattern per domain, all in all."""
    count = len(domains)
    shared = trees.count(variables["shared"])
    adapters = trees.count(variables["adapters"])
    frozen = trees.count(variables["frozen"])
    lines = [f"parameters: {shared:>12,} shared"]
    if frozen:
        share = 100 * (shared + adapters) / (shared + adapters + frozen)
        lines.append(f"            {frozen:>12,} frozen; {share:.2f}% are trained")
    flat = trees.flatten(variables["adapters"])
    for pattern in patterns:
        leaves = [flat[path] for path in trees.select(flat, [pattern])]
        size = sum(trees.count(leaf) for leaf in leaves) // count
        lines.append(f"            {size:>12,} per domain: {pattern}")
    lines.append(
        f"            {adapters:>12,} in the adapters of {count} domains "
        f"({', '.join(domains)})"
    )
    deployed = shared + frozen + adapters // max(count, 1)
    lines.append(f"            {deployed:>12,} in one deployed network")
    return "\n".join(lines)


def restore_variables(opened, step, adapters=""):
    """(averaged variables, step) of a checkpoint: "latest", "best" or a number.

    adapters: a file whose adapters replace those of the checkpoint.
    """
    abstract = abstract_state(opened)
    if adapters and not jax.tree.leaves(abstract.variables["frozen"]):
        raise UsageError(
            f"--adapters={adapters}: nothing is frozen in {opened.folder}, so it has no "
            "backbone for them; name the workdir of a run whose config.trained leaves "
            "something out"
        )
    with open_checkpoints(opened, read_only=True) as saved:
        found = saved.find(step, opened.folder)
        variables = states.averaged(saved.restore(abstract, found))
    if adapters:
        variables = files.load(adapters, variables, adapter_settings(opened))
        variables = jax.device_put(variables, meshes.replicated(opened.mesh))
    return variables, found


def sample(split, count):
    """`count` examples of a split, drawn once for all; all for None."""
    if count is None or count >= len(split):
        return split
    drawn = np.random.default_rng(0).permutation(len(split))[:count]
    return Subset(split, np.sort(drawn))
