# Croce et al. (2023), "Seasoning Model Soups": an Linf-robust network is fine-tuned to L2, L1
# and clean images, and soups of the four are chosen for each test set.
#
#   snakemake -s launch/reproduce/seasoning.smk --configfile launch/reproduce/rehearsal.yaml
#
# ends with RUNS/tables/seasoning.md, the nine rows of the paper's poster beside ours, and with
# report.md of the soups of each network. docs/reproduce.md tells the rest.

include: "common.smk"
include: "poster.smk"


THREATS = ("linf", "l2", "l1", "nominal")
NETWORKS = config["seasoning"]["networks"]
SOUP = "seasoning/{network}/soup"
CHOSEN = {
    "Individual networks ensemble": "ensemble",
    "Single soup": "single",
    "Dataset-specific soups": "specific",
}


def ingredients(network):
    """The trainings of the four networks, the Linf-robust one first."""
    # The Linf-robust ViT is also the poster's row "Adversarial training".
    first = "imagenet/linf" if network == "vit_b16" else f"seasoning/{network}/linf"
    return [first, *(f"seasoning/{network}/{threat}" for threat in THREATS[1:])]


def soup_flags(network):
    """The flags of `evaluate` for the soups: under attacks, and on shifted images."""
    suites = [f"pgd40_{threat}" for threat in THREATS[:3]]
    flags = [f"--grid={config['seasoning']['grid']}", f"--ensemble={even(THREATS)}"]
    flags.append(f"--suite={','.join(suites)},corruptions")
    return " ".join([*flags, "" if network == "wrn28_10" else set_flags()])


def poster_rows():
    """--papers of `report`: each row with its folders, one for each seed."""
    soups = [folder(SOUP.format(network="vit_b16"), seed) for seed in SEEDS]
    rows = poster_networks()
    rows |= {name: f"{','.join(soups)}@{way}" for name, way in CHOSEN.items()}
    return ";".join(f"{name}={where}" for name, where in rows.items())


rule all:
    input:
        f"{RUNS}/tables/seasoning.md" if "vit_b16" in NETWORKS else [],
        expand(folder(f"{SOUP}/report.md", SEEDS[0]), network=NETWORKS),
    default_target: True


rule soup:
    input:
        lambda w: results_of(ingredients(w.network))(w),
    output:
        folder(f"{SOUP}/lineage.json", "{seed}"),
    params:
        verb=lambda w: verb("soup", folder(SOUP.format(network=w.network), w.seed)),
        ingredients=lambda w: ",".join(folder(n, w.seed) for n in ingredients(w.network)),
        output=folder(SOUP, "{seed}"),
    shell:
        "{params.verb} --ingredients={params.ingredients} --output={params.output}"


rule evaluate_soup:
    input:
        folder(f"{SOUP}/lineage.json", "{seed}"),
    output:
        folder(f"{SOUP}/evaluation.json", "{seed}"),
    threads: config["threads"]
    params:
        verb=lambda w: verb("evaluate", folder(SOUP.format(network=w.network), w.seed)),
        flags=lambda w: soup_flags(w.network),
        workdir=folder(SOUP, "{seed}"),
    shell:
        "{params.verb} --workdir={params.workdir} {params.flags}"


rule report:
    input:
        lambda w: [folder(f"seasoning/{w.network}/soup/selection.json", s) for s in SEEDS],
    output:
        folder(f"{SOUP}/report.md", SEEDS[0]),
    params:
        verb=lambda w: verb("report", folder(SOUP.format(network=w.network), SEEDS[0])),
        workdirs=lambda w: ",".join(folder(f"seasoning/{w.network}/soup", s) for s in SEEDS),
        # Pictures of all corruptions would take minutes, and nobody could read them.
        suites=",".join(["clean", *(f"pgd40_{threat}" for threat in THREATS[:3])]),
    shell:
        "{params.verb} --workdir={params.workdirs} --suite={params.suites}"


rule poster:
    input:
        poster_files(),
        [f"{folder(SOUP.format(network='vit_b16'), seed)}/selection.json" for seed in SEEDS],
    output:
        f"{RUNS}/tables/seasoning.md",
    params:
        verb=verb("report", "tables/seasoning"),
        rows=poster_rows(),
    shell:
        "{params.verb} --papers='{params.rows}' --output={output}"
