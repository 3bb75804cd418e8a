"""How many networks and images fit: real compiled predictors in rooms that are given."""

import jax
import numpy as np
import pytest
import tiny

from advadapters import costs, networks
from advadapters.errors import UsageError
from advadapters.evaluation import accuracy, fitting
from advadapters.training import states

NET = tiny.network()
KNOBS = [networks.Knob(np.array(m, np.float32)) for m in np.eye(5)[:, :2]]
BATCH = tiny.raw_batch(8) | {"seed": np.zeros(8, np.uint32)}


@pytest.fixture(scope="module")
def made():
    """What was compiled, for all tests."""
    return {}


@pytest.fixture(scope="module")
def asked():
    """(predictor, variables): all soups at once are the largest program."""
    from advadapters import meshes

    mesh = meshes.make(jax.devices()[:1])
    predictor = accuracy.make_predictor(NET, None, mesh=mesh)
    variables = states.branches(tiny.plain(NET), ("class_token", "norm/.*"), 2)
    return predictor, variables, mesh


def fitted(asked, made, room, *others):
    """Programs of the predictor (and others) in so much room."""
    predictor, variables, mesh = asked
    wanted = [fitting.Wanted(one, KNOBS, 5, BATCH) for one in (predictor, *others)]
    return fitting.programs(wanted, variables, mesh=mesh, rows=8, room=room, cache=made)


def test_what_fits_is_all_at_once_then_fewer_soups_then_fewer_images(asked, made):
    (whole,) = fitted(asked, made, 2**40)
    assert (whole.soups, whole.rows) == (5, 8) and len(made) == 1
    assert whole.memory["peak"] >= whole.memory["arguments"] > 0
    (alone,) = fitted(asked, made, 0)
    assert (alone.soups, alone.rows) == (1, 1)  # nothing smaller is there
    seen = {(5, 8)}
    for room in np.linspace(whole.memory["peak"], alone.memory["peak"], 6)[1:-1]:
        (found,) = fitted(asked, made, int(room))
        assert found.memory["peak"] <= room < whole.memory["peak"]
        assert found.soups < 5 and (found.soups == 1 or found.rows == 8)
        assert 8 % found.rows == 0
        seen.add((found.soups, found.rows))
    assert len(seen) > 2
    assert fitted(asked, made, 2**40) == [whole]  # and nothing is compiled twice


def test_all_programs_take_the_same_images(asked, made):
    """The one that needs most says how many; the others take more soups all the same."""
    _, variables, mesh = asked

    def costly(logits_fn, images, labels, key):
        return images + jax.nn.relu(images[..., None] * np.zeros(2000)).sum(-1)

    other = accuracy.make_predictor(NET, costly, mesh=mesh)
    (alone,) = fitted(asked, made, 2**40)
    few, large = fitted(asked, made, alone.memory["peak"], other)
    assert few.rows == large.rows


def test_groups_are_even_and_parts_whole():
    assert [fitting.even(13, n) for n in (99, 13, 12, 7, 6, 5, 1, 0)] == [
        13, 13, 7, 7, 5, 5, 1, 1,
    ]  # fmt: skip
    assert [fitting.part(12, n) for n in (99, 12, 11, 5, 1, 0)] == [12, 12, 6, 4, 1, 1]
    assert [fitting.part(7, n) for n in (7, 6)] == [7, 1]


def test_a_compiler_that_gives_up_is_asked_for_less():
    """Fifty bytes a soup and image, and a compiler that says so or not."""

    def maker(limit, tells):
        def make(soups, rows):
            need = 100 + 50 * soups * rows
            fits = need <= limit
            memory = {"peak": need if fits or tells else None}
            return fitting.Program(fits or None, soups, rows, 0.0, 0.0, memory)

        return make

    for tells in (True, False):
        found = fitting.fit(maker(1200, tells), 13, 13, 4, 1000)
        assert (found.soups, found.rows) == ((4, 4) if tells else (4, 4))
        found = fitting.fit(maker(1200, tells), 2, 2, 64, 1000)
        assert (found.soups, found.rows) == (1, 16)
    lost = fitting.fit(maker(120, True), 2, 2, 4, 1000)
    assert (lost.soups, lost.rows, lost.call) == (1, 1, None)
    with pytest.raises(UsageError, match="one network on one image of each device does no"):
        fitting.need_room([lost])


def test_the_room_is_what_a_device_has_left(one_device, mesh):
    variables = {"a": np.zeros(1000, np.float32)}
    alone, eighth = (fitting.room(m, variables) - 4000 for m in (one_device, mesh))
    assert alone == int(fitting.SHARE * fitting.HOST) and alone // 8 == eighth
    h100, v5e = (fitting.room_of(costs.CHIPS[name]) for name in ("H100", "v5e"))
    assert h100 == int(0.9 * 0.75 * 80e9) and v5e == int(0.9 * 16 * 2**30)
    assert fitting.most(mesh, 13) == 1  # of CPUs
