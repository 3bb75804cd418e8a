# Rebuffi et al. (2023), "Revisiting adapters with adversarial training": co-training of clean
# and attacked images with an adapter each, and soups of the adapters.
#
#   snakemake -s launch/reproduce/revisiting_adapters.smk \
#       --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/revisiting_adapters.md, the poster's rows and those of co-training on
# the eight test sets, and revisiting_adapters.trainings.md, all trainings under PGD-40 and
# AutoAttack. docs/reproduce.md tells the rest.

include: "common.smk"
include: "poster.smk"


TOKENS = [n for n in of_paper("revisiting_adapters") if "alpha_" in n]
ATTACKED = [*TOKENS, "imagenet/linf"]
CHOSEN = {
    "clean or robust mode": "ingredient",
    "one soup": "single",
    "a soup for each set": "specific",
    "ensemble of the modes": "ensemble",
}


def table_rows():
    """--papers of `report`: the poster's networks, then every alpha in four ways."""
    rows = poster_networks()
    for name in TOKENS:
        folders = ",".join(folder(name, seed) for seed in SEEDS)
        about = f"Co-training, alpha {int(name[-2:]) / 100:g}"
        rows |= {f"{about}, {title}": f"{folders}@{way}" for title, way in CHOSEN.items()}
    return ";".join(f"{name}={where}" for name, where in rows.items())


rule all:
    input:
        f"{RUNS}/tables/revisiting_adapters.md",
        f"{RUNS}/tables/revisiting_adapters.trainings.md",
    default_target: True


rule sets:
    input:
        poster_files(),
        [f"{folder(name, seed)}/selection.json" for name in TOKENS for seed in SEEDS],
    output:
        f"{RUNS}/tables/revisiting_adapters.md",
    params:
        verb=verb("report", "tables/revisiting_adapters"),
        rows=table_rows(),
    shell:
        "{params.verb} --papers='{params.rows}' --output={output}"
