"""Every config and variant is built, and takes one shrunken step on random images."""

import functools
import importlib.util
import os
import pathlib
import re

import chex
import jax
import numpy as np
import pytest

from advadapters import builders, defaults, meshes, trees
from advadapters.errors import UsageError
from advadapters.runs import experiments
from advadapters.training import views

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))
EVIDENCE = sorted((ROOT / "configs" / "evidence").glob("*.py"))


def load(path, variant):
    """The config of a file and variant, as nested dicts."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant).to_dict(), module


def variants(path):
    """The variants that a config has, its default first."""
    return list(getattr(load(path, "")[1], "VARIANTS", defaults.METHODS))


def tried(path):
    """The variants to try; of those that differ in the data or a number alone, a few."""
    alike = {
        "fulllora": ("cifar100_", "imagenette_", "cifar10_pretrained_full"),
        "imagenet_vit_b16": ("alpha_", "from_linf_l1"),
        "seasoning": ("wrn28_10_l1", "resnet50_"),
        "oat": ("cifar10_averaged",),
        "twins": ("cifar10_averaged", "cifar10_trades_kl", "cifar100"),
        "digits_oat": ("fixed_20", "fixed_30", "fixed_40"),
        "digits_twins": ("trades_kl",),
    }
    left_out = alike.get(path.stem, ())
    return [name for name in variants(path) if not name.startswith(left_out)]


CASES = [(path, variant) for path in FILES for variant in tried(path)]
# Whose default is run, as no other test trains by it; the others are only traced.
RUN = ("digits_twins", "imagenet_vit_b16")
# Whose variants, all but the default, are those of a file of digits on other data and in
# other sizes, which are shrunken away: they are only built.
BUILT = (
    "cifar10_vit", "fashion_mnist", "fashion_season", "fulllora", "oat", "seasoning",
    "twins",
)  # fmt: skip


def on_random_images(config, folder, size):
    """The same experiment on 64 random images of this size."""
    channels = config["data"]["channels"]
    draw = np.random.default_rng(0)
    labels = draw.integers(config["model"]["classes"], size=64)
    images = draw.integers(0, 256, (64, size, size, channels)).astype(np.uint8)
    arrays = {f"{s}_{k}": v for s in ("train", "test") for k, v in
              (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(folder / "data.npz", **arrays)
    config["data"] |= dict(source=f"npz:{folder}/data.npz", image_size=size, threads=1)
    config["data"]["classes"] = ()
    return config


def shrink(config, folder):
    """The same experiment on 64 random images with a one-block network."""
    config = on_random_images(config, folder, 2 * config["model"].get("patch", 4))
    sizes = {"vit": "16x1x32x2", "wide_resnet": "10-1", "resnet": "basic-8x1x1"}
    config["model"]["size"] = sizes[config["model"]["name"]]
    patch = config["model"].get("patch", 4)
    config["model"]["resize"] = config["model"]["resize"] and 4 * patch
    config["batch_size"] = config["evaluation"]["batch_size"] = 8
    if config["loss"] != "views":  # two images a device
        config["batch_size"] = 16
    for one in config["model"]["added"].values():
        one["rank"] = 2
    if len(config.get("oat", {}).get("widths", ())) > 1:
        config["oat"]["widths"] = (0.5, 1.0)
    config["optimizer"]["drops"] = ()
    config["epochs"] = config["batch_size"] / 64
    for attack in config["attacks"].values():
        attack["eps_warmup"] = min(attack["eps_warmup"], config["epochs"])
    side = config["data"]["image_size"]
    for attack in (*config["attacks"].values(), *config["evaluation"]["suites"].values()):
        attack["eps"] = min(attack["eps"], float(side * side))  # L1 of whole images
    return config


@pytest.mark.parametrize("path, variant", CASES, ids=lambda v: getattr(v, "stem", v))
def test_one_step(path, variant, tmp_path, mesh):
    config, _ = load(path, variant)
    run = builders.build(shrink(config, tmp_path), mesh)
    assert run.steps == 1
    first = variant == variants(path)[0]
    if path.stem in BUILT and not first:
        return
    place = meshes.replicated(mesh)
    make = jax.jit(lambda: builders.initial_state(run), out_shardings=place)
    runs = first and path.stem in RUN
    state = make() if runs else jax.eval_shape(make)
    (batch,) = builders.train_batches(run, 0)
    train_step, batch = builders.train_step(run, mesh), meshes.global_batch(mesh, batch)
    seed = np.uint32(0)
    if not runs:
        new, metrics = jax.eval_shape(train_step, state, batch, seed)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    else:
        state, metrics = train_step(state, batch, seed)
        assert state.step == 1 and metrics["nonfinite"] == 0
        assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    if isinstance(run.method, views.Views):
        assert {f"loss/{view.name}" for view in run.method.views} <= metrics.keys()


@pytest.mark.parametrize("variant", ["adversarial", "trades", "mart"])
def test_tricks_of_attacks_on_transformers(variant, tmp_path, mesh):
    config, _ = load(FILES[0].with_name("digits.py"), variant)
    shrink(config, tmp_path)
    config["batch_size"], config["accumulate"] = 16, 2
    config["views"]["linf"] |= dict(attack_tricks=("ard", "prm"), attack_warmup=10.0)
    run = builders.build(config, mesh)
    state = jax.eval_shape(lambda: builders.initial_state(run))
    batch = next(iter(builders.train_batches(run, 0)))
    new, _ = jax.eval_shape(builders.train_step(run, mesh), state, batch, np.uint32(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_programs_do_not_depend_on_the_seed(tmp_path, mesh):
    """What is compiled for one seed of a study serves the others."""
    config, texts = shrink(config_of("digits", "nominal"), tmp_path), []
    for seed in (0, 2**32 - 1):
        run, given = builders.build(config | {"seed": seed}, mesh), np.uint32(seed)
        arguments = builders.abstract_state(run, mesh), builders.abstract_batch(run, mesh)
        first = jax.jit(functools.partial(builders.initial_state, run))
        lowered = (
            builders.train_step(run, mesh).lower(*arguments, given),
            first.lower(None, given),
        )
        texts.append([program.as_text() for program in lowered])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.stem)
def test_experiments_can_be_run_and_judged(path, tmp_path, mesh):
    """Every variant is built, and every claim is about what is evaluated of them."""
    experiment, built = experiments.read(path), {}
    for variant in experiment.variants:
        config = shrink(load(path, variant)[0], tmp_path)
        built[variant] = config, builders.build(config, mesh)
    experiments.check(experiment, built)
    assert {*experiment.variants} == {*variants(path)} and experiment.seeds > 1
    names = [claim["id"] for claim in experiment.claims]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("path", FILES + EVIDENCE, ids=lambda path: path.stem)
def test_docstrings_say_what_a_user_must_know(path):
    text = load(path, "")[1].__doc__
    for word in ("Paper:", "Command:", "Variants:", "Cost:", "xpected"):
        assert word in text
    told = text.partition("Variants:")[2].partition("\nCost:")[0]
    assert set(variants(path)) <= set(re.findall(r"\w+", told))
    assert f"{variants(path)[0]} (default" in told
    assert os.fspath(path.relative_to(ROOT)) in text


def sections(tree, prefix=()):
    """The paths of all sections of a nested dict."""
    yield prefix
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from sections(value, (*prefix, key))


def test_every_key_is_read(tmp_path, mesh):
    """A key that nobody reads is refused wherever it stands, so none is left unread."""
    config, _ = load(FILES[0].with_name("digits.py"), "cotrain")
    names = list(sections(config))
    assert ("evaluation", "suites", "pgd20_linf") in names and ("views", "clean") in names
    free = {("views",), ("attacks",), ("evaluation", "suites")}
    free |= {("start", "mixture"), ("model", "added"), ("model", "film")}
    free |= {("views", n, k) for n in ("clean", "linf") for k in ("mixture", "losses")}
    for path in set(names) - free:
        config, _ = load(FILES[0].with_name("digits.py"), "cotrain")
        section = config
        for key in path:
            section = section[key]
        section["surprise"] = 1
        with pytest.raises(UsageError, match=r"unknown key config\.?\S*surprise"):
            builders.build(config, mesh)


def test_missing_and_mistyped_keys(mesh):
    config, _ = load(FILES[0].with_name("digits.py"), "cotrain")
    del config["optimizer"]["b2"]
    with pytest.raises(UsageError, match="config.optimizer.b2 is missing"):
        builders.build(config, mesh)
    config, _ = load(FILES[0].with_name("digits.py"), "cotrain")
    config["data"]["flip"] = 1
    with pytest.raises(UsageError, match="config.data.flip must be bool, got 1"):
        builders.build(config, mesh)


def config_of(name, variant):
    """A config as its file has it."""
    return load(FILES[0].with_name(f"{name}.py"), variant)[0]


def test_which_images_are_trained_and_judged_on(mesh):
    """Of digits' 1,437 training images 287 are held out, and judged on where asked."""
    config = config_of("digits", "nominal")
    config["data"] |= dict(validation=0.2, train_images=100, test_images=50)
    run = builders.build(config, mesh)
    assert run.steps == round(config["epochs"] * 100 / config["batch_size"])
    held = {run.data.validation.raw(i) for i in range(len(run.data.validation))}
    for where, inside in (("test", False), ("validation", True)):
        config["data"]["judged_on"] = where
        data = builders.build(config, mesh).data
        assert (len(data.train), len(data.validation), len(data.test)) == (100, 287, 50)
        judged = {data.test.raw(i) for i in range(50)}
        assert (judged <= held) == inside
    config["data"]["validation"] = 0.0
    with pytest.raises(UsageError, match="judged_on='validation' needs held-out images"):
        builders.build(config, mesh)
    config = config_of("digits", "nominal")
    config["data"]["classes"] = (3, 5)
    with pytest.raises(UsageError, match="the data has 2 classes but config.model.classes"):
        builders.build(config, mesh)


def test_oat_and_twins_evaluate_no_averages_unless_asked():
    for name in ("oat", "twins"):
        (averaged,) = (v for v in variants(FILES[0].with_name(f"{name}.py")) if
                       config_of(name, v)["ema_decay"])  # fmt: skip
        assert averaged == "cifar10_averaged"


def test_oat_is_as_published():
    config = config_of("oat", "cifar10")
    assert (config["batch_size"], config["data"]["validation"] * 50_000) == (128, 5000)
    assert config["optimizer"]["base_lr"] * 128 / 256 == pytest.approx(0.1)
    fixed = config_of("oat", "cifar10_fixed")
    assert fixed["batch_size"] == 256
    assert fixed["optimizer"]["base_lr"] == pytest.approx(0.1)
    assert round(config_of("oat", "svhn")["data"]["validation"] * 73_257) == 5000
    assert config["evaluation"]["suites"]["pgd7_linf"] == defaults.pgd(
        "linf", 8 / 255, 7, step_size=10 / 255 / 7
    )


def test_baselines_of_twins_attack_cross_entropy():
    for name, variant in (("twins", "cifar10_trades_alone"), ("digits_twins", "trades")):
        view = config_of(name, variant)["views"]["linf"]
        assert view["attack_against"] == "labels" and view["losses"] == {"kl": 6.0}
    for name, variant in (("twins", "cifar10_trades_kl"), ("digits_twins", "trades_kl")):
        view = config_of(name, variant)["views"]["linf"]
        assert view["attack_against"] == "predictions"
    suites = config_of("twins", "cifar10")["evaluation"]["suites"]
    assert not suites["pgd10_linf"]["random_start"]


def test_attacks_on_imagenet_are_the_published_ones():
    attack = config_of("imagenet_vit_b16", "advprop")["attacks"]["linf"]
    told = {"eps": 4 / 255, "steps": 5, "step_size": 1 / 255, "target": "random"}
    assert {key: attack[key] for key in told} == told
    attack = config_of("imagenet_vit_b16", "pyramid")["attacks"]["pyramid"]
    told |= {"name": "pyramid", "eps": 3 / 255, "step_size": 0.5 / 255}
    assert {key: attack[key] for key in told} == told
    assert config_of("digits", "awp")["weight_perturbation"] == 0.01


def test_maes_fine_tuning_is_that_of_the_paper_and_of_the_released_checkpoint(
    tmp_path, mesh
):
    found = {name: config_of("imagenet_vit_b16", name) for name in
             ("nominal", "finetune", "finetune_released")}  # fmt: skip
    rates = {"nominal": 1e-4, "finetune": 1e-3, "finetune_released": 5e-4}
    layers = {"nominal": 1.0, "finetune": 0.75, "finetune_released": 0.65}
    for name, config in found.items():
        assert config["optimizer"]["base_lr"] == rates[name]
        assert config["optimizer"]["layer_decay"] == layers[name]
        erased = config["data"]["random_erasing"]["probability"]
        assert erased == (0.25 if name == "finetune_released" else 0.0)
        assert config["data"]["interpolation"] == "bicubic"
    run = builders.build(shrink(found["finetune"], tmp_path), mesh)
    head = jax.jit(run.network.init)(jax.random.key(0))["params"]["head"]
    assert not head["bias"].any()
    np.testing.assert_allclose(head["kernel"].std(), 2e-5, rtol=0.02)
    assert found["finetune"]["start"]["fresh"] == ("head/.*", "norm/.*")


def test_fulllora_trains_five_percent_at_the_rates_of_its_docstring(tmp_path, mesh):
    config, _ = load(FILES[0].with_name("fulllora.py"), "cifar10")
    run = builders.build(on_random_images(config, tmp_path, 32), mesh)
    assert run.steps == 40  # a step an epoch on 64 images
    rates = [float(run.schedule(step)) for step in (0, 34, 35, 37, 38, 39)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)
    state = jax.eval_shape(lambda: builders.initial_state(run)).variables
    moving, frozen = (trees.count(state[b]) for b in ("shared", "frozen"))
    # LNLoRA of rank 24 (see test_added.py) and the head, of ViT-B without them.
    assert moving == pytest.approx(4.15e6 + 7690, rel=0.002)
    assert moving / (frozen + 7690) == pytest.approx(0.049, abs=0.001)
    assert frozen == pytest.approx(85.1e6, rel=0.002)


def test_vit_b16_counts_flops_and_steps_of_the_recipe():
    config, _ = load(FILES[0].with_name("imagenet_vit_b16.py"), "cotrain")
    assert (config["batch_size"], config["epochs"], config["ema_decay"]) == (
        4096,
        300.0,
        0.9999,
    )
    assert config["attacks"]["linf"] == defaults.pgd("linf", 4 / 255, 2)
    assert config["optimizer"]["base_lr"] * 4096 / 256 == pytest.approx(1.6e-3)
    config, _ = load(FILES[0].with_name("imagenet_vit_b16.py"), "alpha_40")
    weights = {name: view["weight"] for name, view in config["views"].items()}
    assert weights == pytest.approx({"clean": 0.4, "linf": 0.6})
    config, _ = load(FILES[0].with_name("imagenet_vit_b16.py"), "vit_l16")
    assert (config["epochs"], config["model"]["drop_path"]) == (200.0, 0.2)
    assert config["sharding"] == "fsdp" and len(config["views"]) == 2
