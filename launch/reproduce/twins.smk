# Liu et al. (2023), "TWINS": a robust ResNet-50 of ImageNet, fine-tuned robustly.
#
#   snakemake -s launch/reproduce/twins.smk --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/twins.trainings.md. docs/reproduce.md tells the rest.

include: "common.smk"


ATTACKED = of_paper("twins")


rule all:
    input:
        f"{RUNS}/tables/twins.trainings.md",
    default_target: True
