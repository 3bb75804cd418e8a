"""The transfer matrix against counting by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from advadapters import networks, rng, trees
from advadapters.attacks.pgd import pgd
from advadapters.data import pipeline
from advadapters.data.splits import ArraySplit
from advadapters.evaluation import fitting, transfer
from advadapters.evaluation.rows import dump
from advadapters.training import states

NET = tiny.network()
ATTACK = functools.partial(pgd, norm="linf", eps=0.03, steps=3, keep="best")
MIXTURES = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
CASES = [networks.mixture_case(("clean", "linf"), mixture) for mixture in MIXTURES]


def setup(count=21):
    """(split, variables): labels that the soup in the middle has right."""
    raw = tiny.raw_batch(count)
    tree = states.branches(tiny.plain(NET), (".*norm.*", "class_token"), 2)
    other = states.branches(tiny.plain(NET, seed=7), (".*norm.*", "class_token"), 2)
    rows = jax.tree.map(
        lambda a, b: jnp.stack([a[0], b[0]]), tree["adapters"], other["adapters"]
    )
    tree = tree | {"adapters": rows}
    logits = jax.jit(NET.evaluate)(
        trees.plain(tree, (0.5, 0.5)), raw["images"] / np.float32(255)
    )
    return ArraySplit(raw["images"], np.argmax(logits, axis=1)), tree


def counts_of(mesh, network, attack, cases, split, variables, *, batch_size, at_once=1):
    """(Counts, examples) of the matrix of cases; the targets so many at once."""
    batches = list(
        pipeline.eval_batches(split, size=8, crop_ratio=1.0, batch_size=batch_size)
    )
    knobs, first = [case.knob for case in cases], batches[0]
    attacker = transfer.make_attacker(network, attack, mesh=mesh)
    shown = {"images": first["images"].astype(np.float32), "labels": first["labels"]}
    judge = transfer.make_judge(network, mesh=mesh)
    programs = fitting.programs(
        [
            fitting.Wanted(attacker, knobs, 1, first),
            fitting.Wanted(judge, knobs, at_once, shown),
        ],
        variables, mesh=mesh, rows=batch_size // mesh.size, room=2**40, cache={},
    )  # fmt: skip
    (counts,), examples = transfer.matrices(
        programs[:1], programs[1], variables, knobs, batches,
        mesh=mesh, size=len(split), progress=lambda share: None,
    )  # fmt: skip
    return counts, examples


def test_matrix_and_worst_case_are_those_by_hand(mesh):
    split, variables = setup()
    counts, examples = counts_of(
        mesh, NET, ATTACK, CASES, split, variables, batch_size=8, at_once=2
    )
    images, labels = jnp.asarray(split.images, jnp.float32) / 255, split.labels
    keys = rng.by_index(rng.fold(jax.random.key(0), "evaluation"), jnp.arange(21))
    say = jax.jit(NET.evaluate)

    @jax.jit
    def attacked(plain):
        network = functools.partial(NET.evaluate, plain)
        return ATTACK(network, images, jnp.asarray(labels), keys)

    plains = [trees.plain(variables, mixture) for mixture in MIXTURES]
    natural = [np.argmax(say(plain, images), 1) == labels for plain in plains]
    right = np.array(
        [
            [(np.argmax(say(plain, shown), 1) == labels) & clean
             for plain, clean in zip(plains, natural, strict=True)]
            for shown in map(attacked, plains)
        ]
    )  # fmt: skip
    assert examples == 21
    assert not counts.not_finite.any() and not counts.not_attacked.any()
    pairs, worst = counts.right[:-1], counts.right[-1]
    np.testing.assert_array_equal(pairs, right.sum(2))
    np.testing.assert_array_equal(worst, right.all(0).sum(1))
    assert len(set(pairs.ravel().tolist())) > 2  # the cases differ
    assert (worst <= pairs.min(0)).all()


def test_what_is_not_finite_is_counted_and_warned_of(mesh):
    """Logits of NaN are not right; an image of NaN is the clean one."""
    split, variables = setup()
    first = split.images[:, 0, 0, 0] / np.float32(255)

    def lost(plain, images):
        moved = images[:, 0, 1, 0] == 0.5
        return jnp.where(moved[:, None], jnp.nan, NET.evaluate(plain, images))

    def attack(logits_fn, images, labels, key):
        dark = (images[:, 0, 0, 0] < 0.3)[:, None, None, None]
        poison = jnp.where(dark, jnp.nan, images)
        return poison.at[:, 0, 1, 0].set(0.5)

    network = NET._replace(evaluate=lost)
    counts, examples = counts_of(
        mesh, network, attack, CASES[1:2], split, variables, batch_size=24
    )
    dark = int((first < 0.3).sum())
    assert 0 < dark < examples == 21
    assert counts.not_attacked.tolist() == [dark] * 2
    assert counts.not_finite.tolist() == [[21 - dark]] * 2
    assert counts.right.tolist() == [[dark]] * 2
    lines = transfer.strange(transfer.rows(CASES[1:2], "pgd", counts, examples, 7))
    assert f"0.5 linf, pgd: the logits are not finite on {21 - dark} of" in lines[0]
    assert f"not finite for {dark} of 21 images" in lines[1] and len(lines) == 2


def test_rows_and_table():
    pairs, worst = np.array([[5, 6, 7], [4, 3, 8], [9, 9, 2]]), np.array([3, 2, 1])
    none = np.zeros((4, 3), int)
    counts = transfer.Counts(np.vstack([pairs, worst]), none, none[:, 0])
    rows = transfer.rows(CASES, "pgd", counts, 10, 7)
    found = {
        (row.through.mixture.get("clean"), row.network.mixture["clean"]):
        row.correct for row in rows
    }  # fmt: skip
    assert found[1.0, 0.0] == 7 and found[0.0, 1.0] == 9
    assert found[None, 0.5] == 2 and len(rows) == 12
    assert {row.through.kind for row in rows} == {"mode", "soup", "any"}
    assert json.loads(dump(rows))[3]["through"] == {"kind": "any", "mixture": {}}
    lines = transfer.transfer_table(rows, "pgd").splitlines()
    assert lines[0].startswith("| pgd: attacked through | clean mode | 0.5 clean + 0.5 l")
    assert lines[2] == "| clean mode | 50.0 | 60.0 | 70.0 |"
    assert lines[-1] == "| any | 30.0 | 20.0 | 10.0 |"
