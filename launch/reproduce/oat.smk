# Wang et al. (2020), "Once-for-All Adversarial Training": one network for every lambda, on
# CIFAR-10, SVHN and STL-10, and networks that are trained for one lambda.
#
#   snakemake -s launch/reproduce/oat.smk --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/oat.trainings.md. docs/reproduce.md tells the rest.

include: "common.smk"


rule all:
    input:
        f"{RUNS}/tables/oat.trainings.md",
    default_target: True
