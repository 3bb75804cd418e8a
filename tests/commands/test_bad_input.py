"""Every mistake a user can make: one clear line, exit code 2, nothing written."""

import pathlib

import numpy as np
import pytest

from advadapters.__main__ import main

DIGITS = "--config=" + str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")

CONV = DIGITS.replace("digits.py", "digits_conv.py")

OAT = DIGITS.replace("digits.py", "digits_oat.py")
TWINS = DIGITS.replace("digits.py", "digits_twins.py")

CASES = {
    "cuDNN's attention without a GPU": (
        [DIGITS, "--config.model.attention=cudnn"],
        "config.model.attention='cudnn' needs a CUDA GPU of compute capability 8.0",
    ),
    "lambda above 1": (
        [OAT, "--config.oat.lambdas=(0.0,1.5)"],
        "config.oat.lambdas must be growing numbers from 0 to 1, not only 0, got (0.0, 1.5",
    ),
    "a lambda that the encoding does not know": (
        [OAT, "--config.oat.lambdas=(0.0,0.15)"],
        "the random encoding has no row for [0.15]; it has (0.0, 0.1",
    ),
    "a share of lambda 0 without it": (
        [OAT, "--config.oat.lambdas=(0.1,1.0)", "--config.oat.zeros=0.2"],
        "config.oat.zeros=0.2 is the share of lambda 0, which is not in",
    ),
    "widths without the full one": (
        [OAT + ":oats", "--config.oat.widths=(0.5,0.75)"],
        "config.oat.widths must be factors above 0, growing to 1.0, got (0.5, 0.75)",
    ),
    "a width that leaves no whole channels": (
        [OAT + ":oats", "--config.oat.widths=(0.3,1.0)"],
        "width 0.3 leaves 4.8 of 16 channels",
    ),
    "widths of a transformer": (
        [OAT + ":vit", "--config.oat.widths=(0.5,1.0)", '--config.adapters=("norms",)'],
        "config.oat.widths below 1 need a convolutional network",
    ),
    "lambda without FiLM": (
        [OAT + ":vit_tokens", "--config.oat.mixed=False"],
        "config.oat.mixed=False: lambda mixes adapters or goes through FiLM",
    ),
    "domains of one's own": (
        [OAT, '--config.domains=("clean",)'],
        "config.loss='oat' names its domains itself: set domains=()",
    ),
    "pooled statistics of OAT": (
        [OAT, "--config.statistics=pooled"],
        "OAT keeps the batch statistics of its domains apart: set",
    ),
    "dual norms that are shared": (
        [OAT, "--config.adapters=()"],
        "OAT has 2 domains, which differ in config.adapters: name some",
    ),
    "no image left to attack": (
        [OAT, "--config.batch_size=8"],
        "config.batch_size gives 1 images to each device and part; OAT needs more",
    ),
    "a code too short": (
        [OAT, "--config.model.film.size=4"],
        "config.model.film.size=4 is less than the 6 lambdas, which need a row each",
    ),
    "TWINS from scratch": (
        [TWINS, "--config.start.workdir="],
        "TWINS fine-tunes a robust network: name it in config.start.workdir or",
    ),
    "TWINS without statistics": (
        [TWINS, "--config.model.norm=group", "--config.statistics=pooled"],
        "TWINS freezes batch statistics, and this network has none",
    ),
    "TWINS with an odd batch": (
        [TWINS, "--config.batch_size=8"],
        "TWINS needs an even number, half for each wing",
    ),
    "TWINS with weight perturbations": (
        [TWINS, "--config.weight_perturbation=0.01"],
        "config.weight_perturbation is for views; TWINS has none",
    ),
    "no config": ([], "--config=... is missing"),
    "unknown config file": (["--config=no/such.py"], "no config file"),
    "unknown variant": (
        [DIGITS + ":robust"],
        "unknown variant 'robust'; there are: cotrain",
    ),
    "unknown key": (
        [DIGITS, "--config.modle.patch=2"],
        "no such config key: 'modle'. Did you mean \"model\"",
    ),
    "unknown deep key": ([DIGITS, "--config.optimizer.lr=2"], "no such config key"),
    "wrong type": ([DIGITS, "--config.batch_size=many"], "many"),
    "wrong type of a float": ([DIGITS, "--config.optimizer.b1=x"], "x"),
    "unknown flag": ([DIGITS, "--batch=3"], "batch"),
    "stray argument": ([DIGITS, "cotrain"], "unexpected argument 'cotrain'"),
    "eps zero": ([DIGITS, "--config.attacks.linf.eps=0.0"], "eps must be above 0"),
    "eps negative": ([DIGITS, "--config.attacks.linf.eps=-0.1"], "eps must be above 0"),
    "eps in 255ths": ([DIGITS, "--config.attacks.linf.eps=8.0"], "eps must be at most 1"),
    "eps beyond the box": (
        [DIGITS, "--config.attacks.linf.norm=l2", "--config.attacks.linf.eps=8.1"],
        "eps must be at most 8",
    ),
    "division by zero": ([DIGITS, "--config.attacks.linf.eps=8/0"], "division by zero"),
    "pattern without match": (
        [DIGITS, '--config.adapters=("class_tokens",)'],
        "'class_tokens' matches no parameter; near names: class_token",
    ),
    "domain that no view trains": (
        [DIGITS, '--config.domains=("clean","linf","l2")'],
        "3 domains, but no view trains ['l2']",
    ),
    "view of an unknown domain": (
        [DIGITS, '--config.domains=("clean",)'],
        "config.views.linf.mixture={'linf': 1.0}: unknown domain 'linf'; there are: clean",
    ),
    "a domain that no flag can say": (
        [DIGITS, '--config.domains=("clean","a=b")'],
        "config.domains: the name 'a=b' has '=', which separates names",
    ),
    "a domain of a blank": (
        [DIGITS, '--config.domains=("clean"," ")'],
        "config.domains: the name ' ' is empty, has blanks around it or no print",
    ),
    **{
        f"a suite called {name}": (
            [DIGITS, f"--config.evaluation.suites={{{name!r}: {{}}}}"],
            f"config.evaluation.suites: the name {name!r} is taken by evaluation itself",
        )
        for name in ("clean", "union", "fog", "fog-3", "mCE", "imagenet_a", "autoattack")
    },
    "a suite that --suite cannot say": (
        [DIGITS, "--config.evaluation.suites={'a,b': {}}"],
        "config.evaluation.suites: the name 'a,b' has ','",
    ),
    "unknown backbone": (
        [DIGITS, "--config.model.name=resnext"],
        "unknown config.model.name 'resnext'; there are: vit, resnet, preact_resnet, wide",
    ),
    "unknown norm of a model": (
        [DIGITS, "--config.model.norm=instance"],
        "unknown config.model.norm 'instance'; there are: batch, group, layer",
    ),
    "statistics without batch norm": (
        [DIGITS, "--config.statistics=separate"],
        "config.statistics='separate' is about batch norm, and this model has none",
    ),
    "a wide network's depth": (
        [CONV, "--config.model.size=12-1"],
        "config.model.size='12-1' is not DEPTH-WIDTH with a depth of 6 n + 4",
    ),
    "TRADES with one view": (
        [DIGITS + ":trades", "--config.views.linf.reference=linf"],
        "compares with another view, name it in config.views.linf.reference; there are: "
        "clean",
    ),
    "a paired loss without reference": (
        [DIGITS + ":trades", "--config.views.linf.reference="],
        "config.views.linf.losses has kl and reference=''",
    ),
    "unknown attack among several": (
        [DIGITS + ":eat", "--config.views.attacked.attack=linf,l3"],
        "unknown config.views.attacked.attack 'l3'; there are: l1, l2, linf",
    ),
    "an attack twice": (
        [DIGITS + ":eat", "--config.views.attacked.attack=linf,linf"],
        "config.views.attacked.attack names one twice",
    ),
    "TRADES' attack from the clean images": (
        [DIGITS + ":trades", "--config.attacks.linf.random_start=False"],
        "config.views.linf.attack 'linf' starts at the clean images, where the gradient of "
        "their own predictions is zero, so it finds nothing: give it random_start=True",
    ),
    "N-FGSM without noise against predictions": (
        [
            DIGITS + ":n_fgsm",
            "--config.attacks.single.noise=0.0",
            "--config.views.linf.attack_against=predictions",
        ],
        "config.views.linf.attack 'single' starts at the clean images",
    ),
    "Pyramid-AT against predictions": (
        [
            DIGITS + ":pyramid",
            "--config.attacks.pyramid.target=",
            "--config.views.pyramid.attack_against=predictions",
        ],
        "is zero, so it finds nothing: give it target='random'",
    ),
    "predictions without an attack": (
        [DIGITS, "--config.views.clean.attack_against=predictions"],
        "config.views.clean has no attack",
    ),
    "an unknown trick": (
        [DIGITS, "--config.views.linf.attack_tricks=('arp',)"],
        "unknown config.views.linf.attack_tricks 'arp'; there are: ard, prm",
    ),
    "tricks without an attack": (
        [
            DIGITS,
            *(
                f"--config.views.clean.attack_{k}"
                for k in ("tricks=('prm',)", "warmup=1.0")
            ),
        ],
        "config.views.clean.attack_tricks=('prm',) change the steps of pgd, and "
        "config.views.clean.attack is none",
    ),
    "tricks of an attack that takes no such steps": (
        [
            DIGITS + ":n_fgsm",
            *(f"--config.views.linf.attack_{k}" for k in ("tricks=('prm',)", "warmup=1.0")),
        ],
        "config.views.linf.attack is another",
    ),
    "a radius that shrinks": (
        [DIGITS, "--config.attacks.linf.eps_warmup=-1.0"],
        "config.attacks.linf.eps_warmup must be at least 0.0, got -1.0",
    ),
    "a radius that grows for longer than training": (
        [DIGITS, "--config.attacks.linf.eps_warmup=61.0"],
        "config.attacks.linf.eps_warmup=61 epochs, but training ends after config.epochs=6",
    ),
    "a radius that grows in nobody's training": (
        [DIGITS + ":n_fgsm", "--config.attacks.alarm.eps_warmup=1.0"],
        "config.attacks.alarm.eps_warmup=1, but nothing is trained under 'alarm'",
    ),
    "a radius that grows in evaluation": (
        [
            DIGITS,
            "--config.evaluation.suites.mine="
            "{'name': 'pma', 'norm': 'l2', 'eps': 0.1, 'steps': 2, 'restarts': 1, "
            "'eps_warmup': 2.0}",
        ],
        "config.evaluation.suites.mine.eps_warmup=2: radii grow in training alone",
    ),
    "tricks without a warm-up": (
        [DIGITS, "--config.views.linf.attack_tricks=('ard',)"],
        "attack_tricks=('ard',) and attack_warmup=0 epochs: tricks are on",
    ),
    "a warm-up of nothing": (
        [DIGITS, "--config.views.linf.attack_warmup=1.0"],
        "attack_tricks=() and attack_warmup=1 epochs: tricks are on",
    ),
    "tricks for transformers on a conv net": (
        [CONV, "--config.views.linf.attack_tricks=('ard',)"],
        "attack_tricks has 'ard', which is for vision transformers",
    ),
    "a reference that nothing compares with": (
        [DIGITS, "--config.views.linf.reference=clean"],
        "config.views.linf.losses has no paired loss",
    ),
    "a norm that an attack has not": (
        [DIGITS + ":n_fgsm", "--config.attacks.single.norm=l2"],
        "unknown config.attacks.single.norm 'l2'; there are: linf",
    ),
    "weight perturbation of scanned blocks": (
        [DIGITS + ":awp", "--config.model.scan=True"],
        "config.weight_perturbation goes by layer",
    ),
    "freezing everything": ([DIGITS + ":nominal", "--config.trained=()"], "freeze every"),
    "nothing of a pattern trained": (
        [DIGITS, '--config.trained=("lora/.*",)'],
        "config.trained: pattern 'lora/.*' matches no parameter",
    ),
    "a LoRA target that is no layer": (
        [
            DIGITS,
            '--config.model.added={"x": {"kind": "lora", "targets": ("class_token",), '
            '"rank": 2, "scale": 1.0}}',
        ],
        "config.model.added.x.targets are dense or convolutional layers",
    ),
    "a rank above the kernel": (
        [
            DIGITS,
            '--config.model.added={"x": {"kind": "lora", "targets": (".*/fc1",), '
            '"rank": 64, "scale": 1.0}}',
        ],
        "config.model.added.x.rank=64 is not below the kernel of blocks_0/mlp/fc1",
    ),
    "half a LoRA of each domain": (
        [
            DIGITS,
            '--config.model.added={"x": {"kind": "lnlora", "targets": (".*/fc1",), '
            '"rank": 2, "scale": 1.0}}',
            '--config.adapters=(".*_x/a", ".*_x/b")',
        ],
        "a, b are domain-specific and bias, scale are not; choose blocks_0/mlp/fc1_x/.*",
    ),
    "alarm without held-out images": (
        [DIGITS + ":n_fgsm", "--config.validate_every=0"],
        "config.views.linf.alarm looks at held-out images",
    ),
    "unknown optimizer": (
        [DIGITS, "--config.optimizer.name=lamb"],
        "unknown config.optimizer.name 'lamb'; there are: adamw, sgd",
    ),
    "drops that are no pairs": (
        [DIGITS, "--config.optimizer.drops=(30, 0.1)"],
        "config.optimizer.drops must hold tuple, got (30, 0.1)",
    ),
    "drops of three": (
        [DIGITS, "--config.optimizer.drops=((30, 0.1, 2),)"],
        "config.optimizer.drops must hold pairs (epoch, factor)",
    ),
    "drops backwards": (
        [DIGITS, "--config.optimizer.drops=((30, 0.1), (20, 0.01))"],
        "config.optimizer.drops: epochs must be above 0 and increasing",
    ),
    "drops after the end": (
        [DIGITS, "--config.optimizer.drops=((30, 0.1), (60, 0.01))"],
        "config.optimizer.drops: epochs must be below config.epochs=60",
    ),
    "a drop to zero": (
        [DIGITS, "--config.optimizer.drops=((30, 0.0),)"],
        "config.optimizer.drops: factors must be above 0",
    ),
    "a probability above one": (
        [DIGITS, "--config.data.mix_probability=3.0"],
        "config.data.mix_probability must be at most 1.0",
    ),
    "layer pattern without match": (
        [DIGITS, '--config.optimizer.layers=("stages_0/.*",)'],
        "config.optimizer.layers: pattern 'stages_0/.*' matches no parameter",
    ),
    "nothing to start from": (
        [DIGITS, "--config.start.workdir=/no/run"],
        "/no/run holds no run",
    ),
    "patch does not divide": (
        [DIGITS, "--config.model.patch=3"],
        "config.model.patch=3 does not divide config.data.image_size=8",
    ),
    "patch does not divide the resized side": (
        [DIGITS, "--config.model.resize=9"],
        "config.model.patch=2 does not divide config.model.resize=9",
    ),
    "a negative side": (
        [CONV, "--config.model.resize=-1"],
        "config.model.resize must be at least 0",
    ),
    "batch does not divide": (
        [DIGITS, "--config.batch_size=100"],
        "config.batch_size=100 is not divisible by 8 devices; the nearest that is: 96",
    ),
    "accumulation does not divide": (
        [DIGITS, "--config.accumulate=3"],
        "not divisible by 8 devices x 3 accumulated parts",
    ),
    "missing data": (
        [DIGITS, "--config.data.source=folder:/no/dir"],
        "/no/dir is not there",
    ),
    "unknown source": ([DIGITS, "--config.data.source=disk"], "unknown data source 'disk'"),
    "classes do not fit": (
        [DIGITS, "--config.model.classes=7"],
        "the data has 10 classes but config.model.classes=7",
    ),
    "channels do not fit": (
        [DIGITS, "--config.data.channels=3", "--config.model.mean=(0.5,0.5,0.5)"],
        "config.data.channels=3",
    ),
    "mean per channel": ([DIGITS, "--config.model.mean=(0.5,0.5)"], "must be 1 floats"),
    "size": ([DIGITS, "--config.model.size=XXL"], "neither of Ti, S, B, L, H nor WIDTH"),
    "heads": ([DIGITS, "--config.model.size=64x4x256x5"], "heads must divide the width"),
    "unknown norm": ([DIGITS, "--config.attacks.linf.norm=l7"], "there are: linf, l2, l1"),
    "unknown attack": ([DIGITS, "--config.attacks.linf.name=fgsm"], "there are: pgd"),
    "unknown dtype": ([DIGITS, "--config.model.dtype=int8"], "float32, bfloat16"),
    "unknown attack of a view": (
        [DIGITS, "--config.views.linf.attack=l2"],
        "unknown config.views.linf.attack 'l2'; there are: linf",
    ),
    "validation without images": (
        [DIGITS, "--config.validate_every=10"],
        "config.validate_every needs held-out images",
    ),
    "eps in a view's mixture": (
        [DIGITS, "--config.views.linf.mixture.linf=0.5"],
        "config.views.linf.mixture={'linf': 0.5}: weights must sum to 1, got 0, 0.5",
    ),
    "no weights": (
        [DIGITS, "--config.views.linf.weight=0.0", "--config.views.clean.weight=0.0"],
        "every weight is 0",
    ),
    "a domain of weight zero": (
        [DIGITS, "--config.views.linf.weight=0.0"],
        "no view trains ['linf']",
    ),
    "infinite epochs": ([DIGITS, "--config.epochs=inf"], "epochs must be finite"),
    "no soups": ([DIGITS, "--config.evaluation.soup_weights=()"], "soup_weights is empty"),
    "a soup too far out": (
        [DIGITS, "--config.evaluation.soup_weights=(1e17,)"],
        "config.evaluation.soup_weights=(1e+17,): weights must sum to 1",
    ),
    "soup of words": ([DIGITS, '--config.evaluation.soup_weights=("a",)'], "soup_weights"),
    "adapter number": ([DIGITS, "--config.adapters=(1,)"], "adapters must hold str"),
    "domain number": ([DIGITS, '--config.domains=("clean",3)'], "domains must hold str"),
    "bad pattern": (
        [DIGITS, '--config.optimizer.decayed=("(",)'],
        "config.optimizer.decayed: pattern '(' is not a regular expression",
    ),
    "decay of nothing": (
        [DIGITS, '--config.optimizer.decayed=("kernel",)'],
        "config.optimizer.decayed: pattern 'kernel' matches no parameter",
    ),
    "seed": ([DIGITS, "--config.seed=4294967296"], "seed must be at most 4294967295"),
    "adam": ([DIGITS, "--config.optimizer.b2=1.0"], "b2 must be below 1"),
    "std zero": ([DIGITS, "--config.model.std=(0.0,)"], "config.model.std must be above 0"),
    "config that is no Python": (["--config=README.md"], "README.md, line "),
    "sincos width": (
        [DIGITS, "--config.model.size=6x1x8x1", "--config.model.positions=sincos"],
        "divisible by 4",
    ),
}


def fails(argv, capsys, verb="train"):
    """Runs a verb that must exit with 2 after one line; returns the line."""
    assert main([verb, *argv]) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1, out
    return out.err


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(name, tmp_path, capsys):
    argv, message = CASES[name]
    workdir = tmp_path / "run"
    line = fails([*argv, f"--workdir={workdir}"], capsys)
    assert message in line, line
    assert not workdir.exists()


def test_missing_workdir(capsys):
    assert "--workdir=... is missing" in fails([DIGITS], capsys)


def test_workdirs_that_cannot_be_used(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    assert "cannot use" in fails([DIGITS, f"--workdir={file}/run"], capsys)
    assert "not empty and holds no run" in fails([DIGITS, f"--workdir={tmp_path}"], capsys)
    assert "cannot use" in fails([DIGITS, "--workdir=/proc/run"], capsys)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"seed": 5}')
    line = fails([DIGITS, f"--workdir={tmp_path / 'old'}"], capsys)
    assert "another config" in line and "seed" not in line.split("(")[0]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["config.json"]
    (tmp_path / "old" / "config.json").write_text("{")
    assert "holds no run" in fails([DIGITS, f"--workdir={tmp_path / 'old'}"], capsys)


def test_labels_out_of_range(tmp_path, capsys):
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 10])
    arrays = {f"{s}_{k}": v for s in ("train", "test") for k, v in
              (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "data.npz", **arrays)
    source = f"--config.data.source=npz:{tmp_path}/data.npz"
    line = fails([DIGITS, source, f"--workdir={tmp_path}/run"], capsys)
    assert "train labels run from 0 to 10, 10 first at image 3; a model with" in line
    assert "10 classes allows 0 to 9" in line


def test_a_config_with_a_key_that_nobody_reads(tmp_path, capsys):
    path = tmp_path / "typo.py"
    base = pathlib.Path(DIGITS.removeprefix("--config=")).read_text()
    path.write_text(
        base.replace("    return config", "    config.data.mix_up = 1\n    return config")
    )
    line = fails([f"--config={path}", f"--workdir={tmp_path}/run"], capsys)
    assert "unknown key config.data.mix_up; there are: " in line and "mixup" in line


STUDY = {
    "no cases": ([], "give either --adapters=A,B,... or --variants=A,B,..."),
    "both": (["--adapters=norms", "--variants=nominal"], "give either"),
    "twice the same": (["--adapters=norms,norms"], "must name different cases"),
    "no seeds": (
        ["--adapters=norms", "--seeds=0"],
        "--seeds must be a positive whole number",
    ),
    "a case that does not fit": (["--adapters=norms,stem"], "'stem/.*' matches no"),
    "an unknown variant": (["--variants=nominal,robust"], "unknown variant 'robust'"),
    "no time": (["--adapters=norms", "--minutes=0"], "--minutes must be a positive whole"),
    "no claims": (["--adapters=norms", "--ledger=x"], "--ledger is for experiments: leave"),
}


@pytest.mark.parametrize("name", STUDY)
def test_a_study_of_what_cannot_be(name, tmp_path, capsys):
    argv, message = STUDY[name]
    line = fails([DIGITS, *argv, f"--workdir={tmp_path}/study"], capsys, verb="study")
    assert message in line and not (tmp_path / "study").exists()


def test_unknown_verb_and_evaluate(tmp_path, capsys):
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert "unknown verb 'trian'; there are: train, evaluate, transfer, soup" in err
    line = fails([f"--workdir={tmp_path}/none"], capsys, verb="evaluate")
    assert "holds no run" in line


@pytest.mark.parametrize("flags", (["--eps=0.1"], ["--norm=l2", "--suite=pgd20_linf"]))
def test_a_radius_without_autoattack(flags, tmp_path, capsys):
    line = fails([f"--workdir={tmp_path}/none", *flags], capsys, verb="evaluate")
    name = flags[0].partition("=")[0]
    assert f"{name} is for --suite=autoattack" in line
