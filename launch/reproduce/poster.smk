# The rows of the poster of Croce et al. (2023), which two workflows share: networks that are
# evaluated on ImageNet and seven other test sets, and two that were trained apart.

POSTER = {
    "Nominal training": "imagenet/nominal",
    "Adversarial training": "imagenet/linf",
    "Fine-tuned MAE-B16": "imagenet/mae",
    "Fine-tuned MAE-B16, released recipe": "imagenet/mae_released",
    "AdvProp": "imagenet/advprop",
    "Pyramid-AT": "imagenet/pyramid",
}
APART = ["imagenet/nominal", "imagenet/linf"]
INDEPENDENT = "imagenet/independent"


def poster_networks():
    """{row of the poster: its folders, one for each seed} of what is not left out."""
    rows = {
        name: ",".join(folder(training, seed) for seed in SEEDS)
        for name, training in POSTER.items()
        if not skipped(training)
    }
    apart = ",".join(folder(INDEPENDENT, seed) for seed in SEEDS)
    return rows | {"Independent networks ensemble": f"{apart}@ensemble"}


def poster_files():
    """The files that these rows are made of."""
    kept = [training for training in POSTER.values() if not skipped(training)]
    files = [f"{folder(name, seed)}/evaluation.json" for name in kept for seed in SEEDS]
    return files + [f"{folder(INDEPENDENT, seed)}/selection.json" for seed in SEEDS]


rule independent:
    # Also the control: soups of networks that were trained apart should fail.
    input:
        lambda w: results_of(APART)(w),
    output:
        folder(f"{INDEPENDENT}/lineage.json", "{seed}"),
    params:
        verb=lambda w: verb("soup", folder(INDEPENDENT, w.seed)),
        ingredients=lambda w: ",".join(folder(name, w.seed) for name in APART),
        output=folder(INDEPENDENT, "{seed}"),
    shell:
        "{params.verb} --ingredients={params.ingredients} --output={params.output}"


rule evaluate_independent:
    input:
        folder(f"{INDEPENDENT}/lineage.json", "{seed}"),
    output:
        folder(f"{INDEPENDENT}/evaluation.json", "{seed}"),
    threads: config["threads"]
    params:
        verb=lambda w: verb("evaluate", folder(INDEPENDENT, w.seed)),
        flags=f"--grid=0.5 --ensemble={even(['nominal', 'linf'])} --suite=corruptions",
        sets=set_flags(),
        workdir=folder(INDEPENDENT, "{seed}"),
    shell:
        "{params.verb} --workdir={params.workdir} {params.flags} {params.sets}"
