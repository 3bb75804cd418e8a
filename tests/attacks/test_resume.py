"""Cascades that were cut off, and the folders from which they go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from tiny_cascades import EPS, PROGRAMS, data, network, run

from advadapters.attacks import (
    autoattack,
    masking,
    programs,
    resume,
    sweep,
)
from advadapters.attacks.attacker import Attacker
from advadapters.attacks.state import Batch
from advadapters.errors import UsageError


@pytest.fixture
def pretend(monkeypatch):
    """Attacks that break images by number, stage and round, to see the loop around."""

    def attack(self, stage, state, index, rows, targets, key, round_):
        names = [f"{stage.name} {round_} {i}" for i in index]
        broken = np.array([zlib.crc32(name.encode()) % 12 == 9 for name in names])
        cost = dict.fromkeys(state.costs[stage.name], 0) | dict(forwards=len(index))
        points, odd = np.clip(state.images[index] + 0.01, 0, 1), np.zeros(len(index), bool)
        share = np.float32(~broken)
        return Batch(index, points, share, odd, odd, cost)

    monkeypatch.setattr(Attacker, "attack", attack)
    monkeypatch.setattr(masking, "before", lambda *_: [])


def test_resumed_after_any_batch(tmp_path, pretend):
    whole = run(count=40, batch_size=8, resume=tmp_path / "whole")
    files = sorted((tmp_path / "whole").glob("batch-*.npz"))
    assert len(set(whole.broken_by)) == 6 and len(files) > 20
    for cut in range(len(files)):
        part = tmp_path / f"part{cut}"
        shutil.copytree(tmp_path / "whole", part)
        for file in files[cut:]:
            (part / file.name).unlink()
        resumed = run(count=40, batch_size=8, resume=part)
        assert resumed.stages == whole.stages
        np.testing.assert_array_equal(resumed.broken_by, whole.broken_by)
        np.testing.assert_array_equal(resumed.images, whole.images)
        np.testing.assert_array_equal(resumed.norms, whole.norms)
        assert resumed.costs == whole.costs


def test_foreign_files_in_a_folder_to_resume(tmp_path, pretend):
    whole = run(batch_size=8, resume=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    np.savez(tmp_path / "batch-000900.npz", images=np.zeros(3))
    with (tmp_path / "batch-000001.npz").open("rb") as raw, np.load(raw) as file:
        batch = {name: file[name] for name in file.files}
    np.savez(tmp_path / "batch-000901.npz", **batch | dict(index=batch["index"] + 99))
    np.savez(tmp_path / "batch-000902.npz", **batch | dict(name="cw"))
    assert run(batch_size=8, resume=tmp_path).stages == whole.stages
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="holds batches but no manifest.json"):
        run(batch_size=8, resume=tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="holds no settings"):
        run(batch_size=8, resume=tmp_path)


def test_the_batches_of_a_random_network_belong_to_its_run(tmp_path, pretend):
    images, labels = data()

    def again(batch_size):
        autoattack(
            lambda x, key: network()(x), images, labels, jax.random.key(0), norm="l2",
            eps=0.1, version="rand", batch_size=batch_size, resume=tmp_path,
        )  # fmt: skip

    again(16)
    again(16)
    with pytest.raises(UsageError, match="another batch_size"):
        again(8)


def test_a_sweep_is_resumed(tmp_path, pretend):
    images, labels = data()
    news = []

    def again(threats):
        return sweep(
            network(), images, labels, jax.random.key(0), threats=threats,
            resume=tmp_path / "sweep", progress=lambda **n: news.append(n),
        )  # fmt: skip

    for threats, message in (
        ([("linf", 0.03), ("l2", np.inf)], "eps must be"),
        ([("linf", 0.03), ("l7", 1.0)], "unknown norm"),
        ([("linf", 0.03), "l2"], "must be pairs"),
        ([], "threats is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            again(threats)
    assert not news and not (tmp_path / "sweep").exists()
    threats = [("linf", 0.03), ("linf", jnp.float32(0.5)), ("l2", 0.3)]
    first, count = again(threats), len(news)
    second = again(threats)
    assert count and len(news) == count
    assert first.union_accuracy == second.union_accuracy
    folders = sorted(folder.name for folder in (tmp_path / "sweep").iterdir())
    assert folders == ["l2-0.3", "linf-0.03", "linf-0.5"]


def test_a_resumed_run_is_the_whole_run(tmp_path):
    whole = run(batch_size=8)

    class Stop(Exception):
        pass

    def stop_after(batches):
        left = [batches]

        def progress(**_):
            left[0] -= 1
            if not left[0]:
                raise Stop

        return progress

    for batches in (1, 3, 2):  # three interruptions, each further on
        with pytest.raises(Stop):
            run(batch_size=8, resume=tmp_path / "state", progress=stop_after(batches))
    done = len(list((tmp_path / "state").glob("batch-*.npz")))
    assert done == 6
    # A file cut short by a kill is done again.
    last = sorted((tmp_path / "state").glob("batch-*.npz"))[-1]
    last.write_bytes(last.read_bytes()[:50])
    rest = []
    resumed = run(
        batch_size=8, resume=tmp_path / "state", progress=lambda **n: rest.append(n)
    )
    assert resumed.stages == whole.stages
    np.testing.assert_array_equal(resumed.broken_by, whole.broken_by)
    np.testing.assert_allclose(resumed.images, whole.images, atol=1e-5)
    again = []
    run(batch_size=8, resume=tmp_path / "state", progress=lambda **n: again.append(n))
    assert rest and not again


def test_another_run_is_not_resumed(tmp_path):
    run(version=("apgd-ce",), resume=tmp_path)
    for change, message in (
        (dict(eps=0.06), "another eps"),
        (dict(norm="l2", eps=0.05), "another norm"),
        (dict(count=15), "another images, labels, shape"),
    ):
        with pytest.raises(UsageError, match=message):
            run(version=("apgd-ce",), resume=tmp_path, **change)
    images, labels = data()
    other = network(seed=3)
    with pytest.raises(UsageError, match="another network"):
        autoattack(
            other, images, labels, jax.random.key(0), norm="linf", eps=EPS["linf"],
            version=("apgd-ce",), steps=10, resume=tmp_path,
        )  # fmt: skip
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(UsageError, match="cannot use"):
        run(version=("apgd-ce",), resume=tmp_path)


SCRIPT = """
import sys, jax
sys.path[:0] = {paths!r}
import test_resume
test_resume.many(resume={folder!r})
"""


def many(**settings):
    """A cascade of many batches."""
    settings = dict(norm="l2", eps=0.3, version=("apgd-ce", "apgd-t"), **settings)
    return run(count=64, batch_size=8, **settings)


def test_a_real_kill_loses_at_most_one_batch(tmp_path):
    here, folder = os.path.dirname(__file__), tmp_path / "s"
    code = SCRIPT.format(paths=[here, os.path.dirname(here)], folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 200
    while len(list(folder.glob("batch-*.npz"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = len(list(folder.glob("batch-*.npz")))
    assert kept >= 3 and json.loads((folder / "manifest.json").read_text())
    news = []
    resumed, whole = many(resume=folder, progress=lambda **n: news.append(n)), many()
    assert len(list(folder.glob("batch-*.npz"))) == kept + len(news)
    assert resumed.stages == whole.stages
    np.testing.assert_array_equal(resumed.robust, whole.robust)


def test_a_network_with_the_same_clean_logits_is_another_one(tmp_path):
    """A defence that rounds its input, and the network behind it, on 8-bit images."""
    net = network()
    images, labels = data()
    images = np.round(images * 255).astype(np.uint8)

    def again(logits_fn, folder):
        return autoattack(
            logits_fn, images, labels, jax.random.key(0), norm="linf", eps=0.03,
            version=("square",), queries=3, resume=tmp_path / folder, programs=PROGRAMS,
        )  # fmt: skip

    rounds = lambda x: net(jnp.round(x * 255) / 255)  # noqa: E731
    black = lambda x: jax.pure_callback(  # noqa: E731
        lambda x: np.asarray(x).reshape(len(x), -1)[:, :5],
        jax.ShapeDtypeStruct((len(x), 5), jnp.float32), x,
    )  # fmt: skip
    again(rounds, "one")
    again(rounds, "one")
    for other in (net, Partial(lambda scale, x: scale * net(x), np.float32(1.01))):
        with pytest.raises(UsageError, match="another network .its .* differ.: name"):
            again(other, "one")
    attacker = Attacker(programs.as_partial(black), "linf", 0.03, 16)
    found = resume.fingerprint(attacker, images, labels, np.zeros((20, 5)))
    assert list(found) == ["clean logits", "logits near the images"]
