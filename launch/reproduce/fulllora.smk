# Yuan et al. (2025), "FullLoRA": a frozen, nominally trained ViT made robust by LNLoRAs.
#
#   snakemake -s launch/reproduce/fulllora.smk --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/fulllora.trainings.md. docs/reproduce.md tells the rest.

include: "common.smk"


rule all:
    input:
        [
            f"{folder(name, seed)}/autoattack.json"
            for name in of_paper("fulllora")
            for seed in SEEDS
        ],
        f"{RUNS}/tables/fulllora.trainings.md",
    default_target: True
