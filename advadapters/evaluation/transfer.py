"""Is the knob safe? Attacks made through one network of a run, tried on its others."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from advadapters import losses, meshes, rng, trees
from advadapters.evaluation import accuracy, fitting, passes
from advadapters.evaluation.rows import Row
from advadapters.markdown import markdown_table
from advadapters.networks import Case, Identity, Knob, Network
from advadapters.pixels import to_float
from advadapters.shapes import AnyArray, Bool, Images, Int, Marks

ANY = Identity("any", {})  # of the attacked networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferRow(Row):
    """A row about images that were made by an attack through one network, or `ANY`."""

    through: Identity = ANY

    def plain(self) -> dict[str, Any]:
        return super().plain() | {"through": self.through.plain()}


scaled = jax.jit(to_float)  # compiled whole, as it is in predictors


class Counts(NamedTuple):
    """Numbers of images, by T = S + 1 sources and S targets; the last row is of all sources
    together.

    right: [S + 1, S], that t has right before and after the attack through s, and after
    every attack: the worst case for someone who does not know which one is deployed.
    not_finite: [S + 1, S], where the logits of t are not finite then, which is not right.
    not_attacked: [S + 1], where the attack through s gave back what is not finite: then
    the clean image counts.
    """

    right: Int[np.ndarray, "T S"]
    not_finite: Int[np.ndarray, "T S"]
    not_attacked: Int[np.ndarray, " T"]


def make_attacker(network: Network, attack: Callable, *, mesh: Mesh) -> Callable[..., Any]:
    """jit: (variables, knobs [1, ...], batch) -> (images [B, H, W, C], kept bool [B]).

    Attacks through one network. kept: where the attack gave back what is not finite; then
    the image is the clean one, as in `accuracy.make_predictor`.
    """

    def attacked(variables: Any, knobs: Knob, batch: dict) -> tuple[Images, Marks]:
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_image(batch, "evaluation")
        plain = network.at(variables, jax.tree.map(lambda leaf: leaf[0], knobs))
        logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
        moved = attack(logits_fn, images, labels, keys)
        whole = jnp.isfinite(moved).all(axis=(1, 2, 3), keepdims=True)
        return jnp.where(whole, moved, images), ~whole[:, 0, 0, 0]

    return over_rows(attacked, mesh, P("data"))


def make_judge(network: Network, *, mesh: Mesh) -> Callable[..., Any]:
    """jit: (variables, knobs [S, ...], batch) -> (right, lost), both bool [S, B].

    batch: {"images" in [0, 1], "labels"}. lost: where the logits are not finite.
    """

    def judge(
        variables: Any, knobs: Knob, batch: dict
    ) -> tuple[Bool[AnyArray, "S B"], Bool[AnyArray, "S B"]]:
        images, labels = batch["images"], batch["labels"]

        def look(knob: Knob) -> tuple[Marks, Marks]:
            logits = network.evaluate(network.at(variables, knob), images)
            right = ~losses.misclassified(logits, labels)
            return right, ~jnp.isfinite(logits).all(axis=1)

        return trees.each(look, knobs)

    return over_rows(judge, mesh, P(None, "data"))


def over_rows(function: Callable, mesh: Mesh, out: P) -> Callable[..., Any]:
    """jit of a function (variables, knobs, batch), each device on its own rows."""
    local = jax.shard_map(
        function, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=out, check_vma=False
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(local, in_shardings=(everywhere, everywhere, rows))


def matrices(
    attackers: Sequence[fitting.Program],
    judge: fitting.Program,
    variables: Any,
    knobs: list[Knob],
    batches: Iterable[dict[str, Any]],
    *,
    mesh: Mesh,
    size: int,
    progress: Callable[[float], object],
) -> tuple[list[Counts], int]:
    """([Counts] of each attacker, examples), in one pass over a split.

    attackers: [`fitting.Program` of `make_attacker`], of one network at once; judge: that
    of `make_judge`, of as many rows. The others as in `accuracy.tables`.
    """
    fitting.need_room([*attackers, judge])
    count, rows, parts = len(knobs), judge.rows, []
    sources = accuracy.grouped_knobs(knobs, 1)
    targets = accuracy.grouped_knobs(knobs, judge.soups)
    clean = [[] for _ in targets]
    kept = [[[] for _ in sources] for _ in attackers]
    judged = [[[[] for _ in targets] for _ in sources] for _ in attackers]
    looks = len(targets) * judge.flops
    work = sum(count * (attacker.flops + looks) for attacker in attackers) + looks
    queue = passes.Queue(max(work, 1.0) * size / (rows * mesh.size), progress)

    def look(images: Any, labels: Any, columns: list) -> None:
        for group, column in zip(targets, columns, strict=True):
            answer = judge.call(variables, group, {"images": images, "labels": labels})
            queue.put(answer, column, judge.flops)

    for batch in passes.placed(batches, rows, mesh=mesh, parts=parts):
        labels = batch["labels"]
        look(scaled(batch["images"]), labels, clean)
        for attacker, *columns in zip(attackers, kept, judged, strict=True):
            for source, column, answers in zip(sources, *columns, strict=True):
                moved, same = attacker.call(variables, source, batch)
                queue.put(same, column, attacker.flops)
                look(moved, labels, answers)
    queue.settle()
    order, _, index = passes.in_order(parts)

    def whole(columns: list) -> Iterator[Bool[np.ndarray, "S N"]]:
        """(right, lost) of all targets, bool [S, N]."""
        groups = [map(np.hstack, zip(*column, strict=True)) for column in columns]
        return (np.vstack(part)[:count, order] for part in zip(*groups, strict=True))

    natural, _ = whole(clean)
    counts = []
    for same, answers in zip(kept, judged, strict=True):
        right, lost = map(np.stack, zip(*map(whole, answers), strict=True))  # [S, S, N]
        same = np.stack([np.concatenate(column)[order] for column in same])
        counts.append(
            Counts(sums(right & natural, np.all), sums(lost, np.any), sums(same, np.any))
        )
    return counts, len(index)


def sums(
    marks: Bool[np.ndarray, "S *others N"], together: Callable[..., Any]
) -> Int[np.ndarray, "..."]:
    """bool [S, ..., N] -> int [S + 1, ...]: how many are true, at last together."""
    return np.concatenate([marks, together(marks, axis=0, keepdims=True)]).sum(axis=-1)


def rows(
    cases: Sequence[Case], suite: str, counts: Counts, examples: int, step: int
) -> list[TransferRow]:
    """A row for each attacked network and each that its images are tried on."""
    sources = [*(case.identity for case in cases), ANY]
    table = []
    for target, case in enumerate(cases):
        for source, through in enumerate(sources):
            right, lost = (int(n[source, target]) for n in counts[:2])
            row = TransferRow.of_counts(
                case.identity,
                suite,
                right,
                examples,
                step,
                not_finite=lost,
                not_attacked=int(counts.not_attacked[source]),
                through=through,
            )
            table.append(row)
    return table


def strange(rows: Sequence[TransferRow]) -> list[str]:
    """Lines that warn of what is counted by rule in rows of `rows`, of all together."""
    return [
        line
        for row in rows
        if row.through == ANY
        for line in accuracy.warn(
            str(row.network), row.suite, row.not_finite, row.not_attacked, row.n
        )
    ]


def transfer_table(rows: Sequence[TransferRow], suite: str) -> str:
    """A table: a line per attacked network, a column per network that it is tried on."""
    values = {(r.through, r.network): 100 * r.value for r in rows if r.suite == suite}
    sources, targets = (dict.fromkeys(names) for names in zip(*values, strict=True))
    lines = [
        [str(source), *(f"{values[source, target]:.1f}" for target in targets)]
        for source in sources
    ]
    return markdown_table([f"{suite}: attacked through", *map(str, targets)], lines)
