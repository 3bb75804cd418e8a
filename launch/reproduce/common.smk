# What the workflows share: trainings, evaluations, and how a verb is started.
#
# A workflow has one ordinary verb of advadapters a rule, with its ordinary workdir. The rule's
# output is the file that the verb writes last, so a verb that was cut short is run again, and
# goes on from its checkpoints. `full.yaml` explains the keys of the config.

import fnmatch
import os

configfile: os.path.join(workflow.basedir, "full.yaml")

HERE = workflow.basedir
ROOT = os.path.relpath(os.path.join(HERE, "..", ".."))
RUNS = config["runs"]
SEEDS = config["seeds"]
TRAININGS = config["trainings"]
ATTACKED = []  # trainings that AutoAttack judges too, as a workflow says


def fitting(table, name):
    """The values of the keys that the name begins with, the shortest key first."""
    return [table[key] for key in sorted(table, key=len) if name.startswith(key)]


def skipped(name):
    """Whether a training or a row is left out."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in config["left_out"])


def folder(name, seed):
    """The workdir of a training, or of what is made of several."""
    return f"{RUNS}/seed{seed}/{name}"


def variant(name):
    """ "imagenet_vit_b16:nominal": the config of a training without folder and suffix."""
    return os.path.basename(TRAININGS[name]["config"]).replace(".py", "", 1)


def verb(name, workdir, key=""):
    """The beginning of a command: the lock, what starts a process, and the verb.

    A second process that wants the same workdir ends at once with exit code 75.
    """
    lock = f"mkdir -p {RUNS}/locks && flock --nonblock --conflict-exit-code 75 "
    lock += f"{RUNS}/locks/{workdir.removeprefix(RUNS).strip('/').replace('/', '+')} "
    launch = config["launch"].format(root=ROOT)
    return lock + " ".join([*fitting(config["before"], key), launch, name])


def train_flags(name, seed):
    """The flags of `train` for a training and a seed."""
    about = TRAININGS[name]
    file = os.path.normpath(os.path.join(ROOT, about["config"]))
    flags = [f"--config={file}"]
    flags += [f"--workdir={folder(name, seed)}", f"--config.seed={seed}"]
    if config["data_dir"]:
        flags.append(f"--config.data.data_dir={config['data_dir']}")
    if "start" in about:
        flags.append(f"--config.start.workdir={folder(about['start'], seed)}")
    if "weights" in about:
        flags.append(f"--config.start.weights={config['weights'][about['weights']]}")
    return " ".join([*flags, about.get("flags", ""), *fitting(config["flags"], variant(name))])


def even(names):
    """ "a=1/2,b=1/2": the mixture of networks with the same weight."""
    return ",".join(f"{name}=1/{len(names)}" for name in names)


def started_from(wildcards):
    """The results of the training that a training starts from, or nothing."""
    start = TRAININGS[wildcards.name].get("start")
    return f"{folder(start, wildcards.seed)}/results.json" if start else []


def results_of(names, file="results.json"):
    """A function that names this file of the trainings for the seed of a step."""
    return lambda wildcards: [f"{folder(name, wildcards.seed)}/{file}" for name in names]


def evaluate_flags(name):
    """The flags of `evaluate` for a training on all test sets."""
    return f"{TRAININGS[name].get('evaluate', '')} {set_flags()} --suite=corruptions"


def set_flags():
    """The flags of `evaluate` that name the test sets, without the suites."""
    flags = [f"--data={','.join(config['sets'])}"]
    if config["data_dir"]:
        flags.append(f"--data_dir={config['data_dir']}")
    return " ".join(flags)


def of_paper(paper):
    """The names of a paper's trainings that are not left out."""
    patterns = config["papers"][paper]
    kept = [name for name in TRAININGS if not skipped(name)]
    return [n for n in kept if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]


wildcard_constraints:
    name="|".join(TRAININGS),
    seed=r"\d+",


rule train:
    input:
        started_from,
    output:
        folder("{name}/results.json", "{seed}"),
    threads: config["threads"]
    params:
        verb=lambda w: verb("train", folder(w.name, w.seed), variant(w.name)),
        flags=lambda w: train_flags(w.name, w.seed),
    shell:
        "{params.verb} {params.flags}"


rule evaluate:
    input:
        folder("{name}/results.json", "{seed}"),
    output:
        folder("{name}/evaluation.json", "{seed}"),
    threads: config["threads"]
    params:
        verb=lambda w: verb("evaluate", folder(w.name, w.seed), variant(w.name)),
        flags=lambda w: evaluate_flags(w.name),
        workdir=folder("{name}", "{seed}"),
    shell:
        "{params.verb} --workdir={params.workdir} {params.flags}"


rule table:
    # Every training of a paper and what was found of it; rows that were not run are empty.
    input:
        lambda w: [
            f"{folder(name, seed)}/results.json" for name in of_paper(w.paper) for seed in SEEDS
        ],
        lambda w: [f"{folder(name, s)}/attacks.json" for name in ATTACKED for s in SEEDS],
    output:
        f"{RUNS}/tables/{{paper}}.trainings.md",
    params:
        verb=lambda w: verb("papers", f"tables/{w.paper}"),
        plan=os.path.join(os.path.relpath(HERE), "full.yaml"),
    shell:
        "{params.verb} --plan={params.plan} --paper={wildcards.paper} --runs={RUNS} "
        "--output={output}"


rule attack:
    # AutoAttack and MultiTargeted.
    input:
        folder("{name}/results.json", "{seed}"),
    output:
        folder("{name}/attacks.json", "{seed}"),
    threads: config["threads"]
    params:
        verb=lambda w: verb("evaluate", folder(w.name, w.seed), variant(w.name)),
        flags=lambda w: " ".join(fitting(config["attack"], variant(w.name))),
        workdir=folder("{name}", "{seed}"),
    shell:
        "{params.verb} --workdir={params.workdir} --name=attacks {params.flags}"


rule select:
    input:
        "{run}/evaluation.json",
    output:
        "{run}/selection.json",
    params:
        verb=lambda w: verb("select", w.run),
        labels=config["labels"],
    shell:
        "{params.verb} --workdir={wildcards.run} --labels={params.labels}"
