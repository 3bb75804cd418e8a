# Wang et al. (2020), "Once-for-All Adversarial Training", over widths too.
#
#   snakemake -s launch/reproduce/oats.smk --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/oats.trainings.md. docs/reproduce.md tells the rest.

include: "common.smk"


rule all:
    input:
        f"{RUNS}/tables/oats.trainings.md",
    default_target: True
