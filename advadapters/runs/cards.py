"""The model card of an exported network: what it is, and how it was trained and judged.

A README.md with the header that the Hugging Face Hub reads
(https://huggingface.co/docs/hub/model-cards).
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from advadapters.evaluation import tables
from advadapters.evaluation.rows import Row
from advadapters.markdown import markdown_table

SHOWN = 20  # classes that are named one by one


def card(
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    usage: str,
) -> str:
    """The text of a model card.

    Args:
      about: the metadata of the network, see `exports.reading`.
      config: that the run was trained with.
      record: what the run remembers of its images, see `data.identity`.
      rows: result rows of the run, of which those of this network are shown.
      usage: Markdown on how the files beside the card are loaded.
    """
    name = about["name"] or "all soups"
    source = about["source"]
    parts = [
        _header(),
        f"# {source['run']}: {name}",
        _introduction(about),
        "## Use",
        usage.strip(),
        _preparation(about, config["data"]),
        "## Training",
        _command(source),
        _radii(about["eps"]),
        _data(config, record),
        "## Results",
        _results(about, rows),
        "## Source",
        f"Step {source['step']} of the run `{source['run']}`, written by "
        f"{source['program']} with jax {source['jax']}. The whole config of the run:",
        "```json\n" + json.dumps(config, sort_keys=True) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _header() -> str:
    """What the Hub's index reads."""
    tags = ["adversarial-robustness", "model-soups", "advadapters"]
    lines = ["pipeline_tag: image-classification", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _introduction(about: Mapping[str, Any]) -> str:
    """What the network is, in two sentences."""
    rows, columns, channels = about["image"]
    model, classes = about["source"]["model"], about["classes"]
    names = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    trade = (
        f"It takes a mixture of the domains {', '.join(about['domains'])}, which sets the "
        "trade-off between accuracy on clean images and robustness. "
        if about["domains"]
        else ""
    )
    return (
        f"A network of the kind `{model['name']}` and the size {model['size']}, which "
        f"sorts images of {rows}x{columns}x{channels} into {len(classes)} classes: "
        f"{names}. "
        f"{trade}Its robustness is known under the attacks of the results below and under "
        "no others."
    )


def _preparation(about: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """How evaluation made images of the network's size."""
    rows, columns, _ = about["image"]
    area = (
        " `area` averages where images shrink and is bicubic where they grow; timm and "
        "transformers do not have it, so the files for them name `bicubic`."
    )
    return (
        f"Evaluation resized images by `{data['interpolation']}` and kept {rows}x{columns} "
        f"pixels in the middle, with {data['crop_ratio']:g} of the shorter side."
        + area
        * (data["interpolation"] == "area")
    )


def _command(source: Mapping[str, Any]) -> str:
    """How the run is trained again, of the config that the card ends with."""
    return f"""\
The config at the end of this page is all that the training depends on, besides the data.
With that JSON in `{source["run"]}/config.json` and these lines in `again.py`,

```python
from advadapters.runs import workdir
from ml_collections import ConfigDict


def get_config(variant=""):
    return ConfigDict(workdir.read_config("{source["run"]}"))
```

this command trains the network again:

```bash
advadapters train --config=again.py --workdir=again
```"""


def _radii(eps: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table of what each domain was trained under."""
    lines = [
        [
            domain,
            ", ".join(f"{row['attack']}, {row['norm']} {row['eps']:.6g}" for row in attacks)
            or "clean images",
        ]
        for domain, attacks in eps.items()
    ]
    titles = ["domain", "attacks in training, radius for pixels in [0, 1]"]
    return markdown_table(titles, lines)


def _data(config: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    """One sentence about the images."""
    source = config["data"]["source"]
    if not record:
        return f"Data: `{source}`."
    train, test = record["train"], record["test"]
    return (
        f"Data: `{source}`, {train['images']:,} images for training (fingerprint "
        f"{train['fingerprint']}) and {test['images']:,} for evaluation "
        f"({test['fingerprint']})."
    )


def _results(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of this network's rows, all of them where it takes a mixture."""
    network = about["source"]["network"]
    shown = [row for row in rows if not network or _same(row, network)]
    if not shown:
        return (
            "This network was not evaluated by itself: `advadapters evaluate` with its "
            "--mixture does so."
        )
    counts = sorted({row["n"] for row in shown})
    images = " or ".join(f"{count:,}" for count in counts)
    again = f"`advadapters evaluate --workdir={about['source']['run']}{_flags(network)}`"
    return (
        f"On {images} images, in percent, with 95% intervals over the images. Each network "
        f"is attacked through itself. {again} measures them again.\n\n"
        f"{tables.results_table(list(map(Row.of_plain, shown)))}"
    )


def _flags(network: Mapping[str, Any]) -> str:
    """What chooses the network among those of its run."""
    if "lambda" in network:
        return "".join(
            f" --{k}={network[k]:g}" for k in ("lambda", "width") if k in network
        )
    weights = {
        name: weight for name, weight in network.get("mixture", {}).items() if weight
    }
    mixture = ",".join(f"{name}={weight:.10g}" for name, weight in weights.items())
    return f' --mixture="{mixture}"' if mixture else ""


def _same(row: Mapping[str, Any], network: Mapping[str, Any]) -> bool:
    """Whether a row is of the network that was exported, up to the rounding of weights."""
    first, second = (fields.get("mixture", {}) for fields in (row, network))
    others = ("lambda", "width", "statistics")
    ensembles = {row["kind"], network["kind"]} & {"ensemble"}
    return (
        not ensembles
        and all(row.get(key) == network.get(key) for key in others)
        and first.keys() == second.keys()
        and all(math.isclose(first[k], second[k], abs_tol=1e-6) for k in first)
    )
