"""The rule that judges claims, against closed forms and made-up networks."""

import json
import math
import pathlib

import numpy as np
import pytest

from advadapters import intervals
from advadapters.errors import UsageError
from advadapters.evaluation import claims, ledger
from advadapters.evaluation.accuracy import Table
from advadapters.networks import Identity, mixture_case

DOCS = pathlib.Path(__file__).parents[2] / "docs"
A, B, C = (("a", "", "clean"), ("b", "", "clean"), ("c", "", "clean"))


def test_the_interval_is_that_of_agresti_and_min():
    better, worse, count = 30, 12, 200
    values = [1.0] * better + [-1.0] * worse + [0.0] * (count - better - worse)
    low, high, error = intervals.paired(values)
    # Their counts b + 1/2, c + 1/2 and n + 2 in Wald's formula for matched pairs.
    b, c, n = better + 0.5, worse + 0.5, count + 2
    assert error == pytest.approx(math.sqrt(b + c - (b - c) ** 2 / n) / n)
    assert (low + high) / 2 == pytest.approx((b - c) / n)
    assert (high - low) / 2 == pytest.approx(1.959964 * error)
    assert intervals.two_sided(1.959964) == pytest.approx(0.05, rel=1e-5)


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    """Few differing images are the hard case; by chance 2,000 trials miss by 0.015."""
    draw, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        values = draw.choice([-1.0, 0.0, 1.0], size=150, p=[0.02, 0.92, 0.06])
        low, high, _ = intervals.paired(values.tolist())
        inside += low < 0.04 < high
    assert 0.935 < inside / 2000 < 0.98


def seeds(*correct, count=100):
    """A network of one seed for each: the first so many of the images are right."""
    return [(np.arange(count), np.arange(count) < right) for right in correct]


def judged(first, second, margin=0.0, test="more"):
    return claims.verdict([claims.compare(first, second, margin)], test)


def test_a_comparison_is_decided_by_interval_and_every_seed():
    low = seeds(60, 60)
    # d images differ, all one way: z = d / sqrt(d + 1 - d * d / 102), 1.96 is passed at 5.
    assert judged(seeds(65, 65), low) == ("holds", "")
    word, why = judged(seeds(64, 64), low)
    assert word == "not tested" and "the interval holds the margin; about " in why
    assert judged(low, seeds(65, 65)) == ("does not hold", "")
    # Seeds that disagree, however sure the images are of the mean.
    word, why = judged(seeds(90, 59), low)
    spread = np.std([0.30, -0.01], ddof=1)
    about = math.ceil((1.96 * spread / 0.145) ** 2)
    assert word == "not tested" and f"the seeds disagree; about {about} seeds" in why
    assert judged(low, low)[1].endswith("no number of images tells apart")
    word, why = judged(seeds(99), seeds(1))
    assert (word, why) == ("not tested", "1 seed only: at least 2 are needed")


def test_so_many_images_would_tell():
    """20 of 400 against 10 differ: as many again in proportion must just be decided."""
    first, second = np.zeros(400, bool), np.zeros(400, bool)
    first[:20], second[20:30] = True, True
    found = claims.compare(*([(np.arange(400), one)] * 2 for one in (first, second)))
    (images,) = [int(word.replace(",", "")) for word in
                 claims.what_would_tell(found).split() if word[0].isdigit()]  # fmt: skip
    share = [1.0] * 20 + [-1.0] * 10 + [0.0] * 370
    many = share * round(images / 400 + 0.5)
    assert intervals.paired(many)[0] > 0 > intervals.paired(share)[0]


def test_within_a_margin():
    claim = dict(id="x", sentence="", place="", test="within", margin=0.1, rows=((A, B),))

    def word(first, second):
        found = {A: first, B: second}
        return claims.verdict(
            [claims.compare(found[one.first], found[one.second], one.margin)
             for one in claims.comparisons(claim)], "within")[0]  # fmt: skip

    assert word(seeds(60, 61), seeds(61, 60)) == "holds"
    assert word(seeds(80, 80), seeds(60, 60)) == "does not hold"
    assert word(seeds(60, 60), seeds(80, 80)) == "does not hold"
    assert word(seeds(68, 68), seeds(60, 60)) == "not tested"


def test_several_comparisons_share_the_level():
    clear, doubtful = seeds(80, 80), seeds(65, 65)  # p far below 0.01, and just below 0.05
    low = seeds(60, 60)

    def word(firsts, test="more"):
        return claims.verdict([claims.compare(first, low) for first in firsts], test)[0]

    assert word([doubtful]) == word([clear, clear, clear]) == "holds"
    assert claims.compare(doubtful, low).p < 0.05 < 2 * claims.compare(doubtful, low).p
    assert word([doubtful, doubtful]) == "not tested"
    assert word([clear, doubtful]) == "holds"  # Holm: the last step has the whole level
    assert word([clear, low]) == "not tested"
    assert word([clear, seeds(40, 40)]) == "does not hold"
    assert word([clear, seeds(40, 40)], "any") == "holds"
    assert word([seeds(40, 40), seeds(30, 30)], "any") == "does not hold"
    assert word([seeds(40, 40), low], "any") == "not tested"


def front(falls, rises, margin=0.02):
    """The verdict on networks with so many images of 1,000 right in two suites."""
    names = tuple("abcdef"[: len(falls)])
    claim = dict(id="x", sentence="", place="", test="front", margin=margin,
                 variant="v", networks=names, suites=("s", "t"))  # fmt: skip
    right = {
        ("v", name, suite): seeds(count, count, count=1000)
        for suite, many in (("s", falls), ("t", rises))
        for name, count in zip(names, many, strict=True)
    }
    pairs = claims.comparisons(claim)
    found = [claims.compare(right[p.first], right[p.second], p.margin) for p in pairs]
    assert claims.rows(claim) == list(right)
    return claims.verdict(found, "front")[0]


def test_a_front_is_monotone_up_to_its_margin_with_ends_apart():
    assert front((900, 850, 800), (300, 400, 500)) == "holds"
    assert (
        front(
            (900, 905, 800),
            (
                300,
                400,
                395,
            ),
            margin=0.02,
        )
        == "holds"
    )
    assert front((900, 960, 800), (300, 400, 500)) == "does not hold"
    assert front((900, 850, 800), (500, 400, 300)) == "does not hold"
    assert front((900, 900, 900), (300, 400, 500)) == "not tested"


def test_pairs_are_formed_by_the_numbers_of_images(rng):
    numbers = rng.permutation(500)
    first, second = rng.random(500) < 0.7, rng.random(500) < 0.6
    order = rng.permutation(500)[:300]
    found = claims.compare(
        [(numbers, first[numbers])], [(numbers[order], second[numbers][order])]
    )
    both = np.zeros(500, bool)
    both[numbers[order]] = True
    assert found.images == 300
    assert found.difference == pytest.approx(first[both].mean() - second[both].mean())
    assert found.values == [(first[both].mean(), second[both].mean())]
    with pytest.raises(ValueError, match="no image in common"):
        claims.compare(
            [(np.arange(3), np.ones(3, bool))], [(np.arange(3, 6), np.ones(3, bool))]
        )


def test_what_is_chosen_is_judged_on_other_images():
    told = [mixture_case(("a", "b"), (w, 1 - w)).identity for w in (1.0, 0.5, 0.0)]
    labels = np.zeros(40, int)
    pool, unseen = claims.soups.split_images(40, 10)
    said = np.ones((3, 40), int)
    said[1, pool] = 0  # the soup is right on the images that choose, and on 5 others
    said[1, unseen[:5]] = 0
    said[2, pool[:5]] = 0
    table = Table(said, labels, np.arange(40) + 100)
    for text, right in (("best", 5), ("best mode", 0), ("b=1", 5)):
        index, found = claims.rights(told, table, text, 10)
        assert found.sum() == right
        assert len(index) == (40 if text == "b=1" else 30)
    assert {*claims.rights(told, table, "best", 10)[0]} == {*(unseen + 100)}
    assert claims.number(told, "a=0.5, b=1/2") == 1
    for text in ("", "a=0.3,b=0.7", "lambda=1", "c=1"):
        with pytest.raises(UsageError, match="no network"):
            claims.number(told, text)
    lambdas = [Identity("lambda", {}, lam) for lam in (0.0, 0.2, 1.0)]
    assert claims.number(lambdas, "lambda=0.2") == 1


def test_claims_that_cannot_be():
    whole = dict(id="x", sentence="", place="", test="more", rows=((A, B),))
    claims.check(whole)
    for claim, message in (
        (whole | dict(test="less"), "unknown test of claim x 'less'"),
        (whole | dict(networks=()), "claim x: networks is missing or unknown"),
        ({k: v for k, v in whole.items() if k != "rows"}, "rows is missing"),
        (whole | dict(rows=((A, B[:2]),)), "rows are "),
    ):
        with pytest.raises(UsageError, match=message):
            claims.check(claim)


ABOUT = dict(
    paper="P", data="D", command="advadapters study", jax="0", commit="c", device="d",
    date="2026-01-01", cpu_seconds=1800.0, wall_seconds=2.0,
)  # fmt: skip


def row(name, sentence="S", experiment="e"):
    claim = dict(id=name, sentence=sentence, place="Table 1", test="more", rows=((A, B),))
    found = [claims.compare(seeds(80, 82), seeds(60, 60))]
    return ledger.row(experiment, claim, found, (0, 1), ABOUT)


def test_a_row_tells_all_that_judged_it():
    told = json.loads(ledger.dump([row("x")]))
    assert told["rows"] == [
        {"row": list(A), "values": [0.80, 0.82], "mean": pytest.approx(0.81)},
        {"row": list(B), "values": [0.60, 0.60], "mean": pytest.approx(0.60)},
    ]
    (pair,) = told["comparisons"]
    assert pair["by_seed"] == pytest.approx([0.20, 0.22]) and pair["images"] == 100
    assert pair["low"] < pair["difference"] < pair["high"]
    assert (told["verdict"], told["why"], told["seeds"]) == ("holds", "", [0, 1])
    line = next(
        one for one in ledger.evidence_page([told]).splitlines() if "Table 1" in one
    )
    low, high = (f"{100 * pair[key]:.1f}" for key in ("low", "high"))
    ours = f"clean: a 81.0, b 60.0, +21.0 ({low} to {high})"
    assert line == f"| S | Table 1 | {ours} | 2 | **holds** | 0.5 |"


def test_of_many_comparisons_the_clearest_are_told():
    others = [(f"b{n}", "", "clean") for n in range(6)]
    claim = dict(id="x", sentence="S", place="T", test="any",
                 rows=tuple((A, other) for other in others))  # fmt: skip
    found = [claims.compare(seeds(80, 80), seeds(80 - n, 80 - n)) for n in range(6)]
    text = ledger.ours(ledger.row("e", claim, found, (0, 1), ABOUT)).split("<br>")
    assert text[0] == "6 comparisons; the clearest 4:"
    assert [line.split()[3] for line in text[1:]] == ["b5", "b4", "b3", "b2"]


def test_newer_rows_take_the_place_of_older_ones():
    old = [row("x"), row("y"), row("x", experiment="f")]
    new = ledger.merged(old, [row("z"), row("y", sentence="new")])
    assert [(r["experiment"], r["id"], r["claim"]) for r in new] == [
        ("e", "x", "S"), ("e", "y", "new"), ("f", "x", "S"), ("e", "z", "S"),
    ]  # fmt: skip
    assert ledger.load(ledger.dump(new)) == new


def test_the_page_of_evidence_is_what_the_ledger_says():
    rows = ledger.load((DOCS / "ledger.jsonl").read_text())
    assert (DOCS / "evidence.md").read_text() == ledger.evidence_page(rows)
