# Yuan et al. (2025), "FullLoRA": a frozen, nominally trained ViT made robust by LNLoRAs.
#
#   snakemake -s launch/reproduce/fulllora.smk --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/fulllora.trainings.md. docs/reproduce.md tells the rest.

include: "common.smk"


ATTACKED = of_paper("fulllora")


rule all:
    input:
        f"{RUNS}/tables/fulllora.trainings.md",
    default_target: True
