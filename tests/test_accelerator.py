"""The benchmark for accelerators: all its parts on the CPU, and what holds it together."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import accelerator
import pytest
from parts import PARTS, queue, record, tables, worker

SCRIPT = pathlib.Path(accelerator.__file__)


def run(folder, *flags):
    """A run of the program in its small form; what it printed."""
    command = [sys.executable, SCRIPT, "--size=small", "--torch=no", f"--output={folder}"]
    return subprocess.run([*command, *flags], capture_output=True, text=True, check=False)


def results(folder):
    """What it wrote."""
    return json.loads((folder / "results.json").read_text())


def test_every_part_runs_and_a_later_call_goes_on(tmp_path):
    first = run(tmp_path, "--minutes=8")
    assert first.returncode == 0, first.stdout + first.stderr
    found = results(tmp_path)
    rows = found["rows"]
    assert list(rows) == list(PARTS)
    assert all("seconds_spent" in row for part in rows.values() for row in part.values())
    assert found["setting"]["size"] == "small" and found["running"] is None
    for row in rows["correctness"].values():
        assert row["passed"] and row["errors"].keys() == row["tolerances"].keys()
        assert all(row["errors"][name] <= row["tolerances"][name] for name in row["errors"])
    assert rows["correctness"]["evaluation in float32"]["products"] > 5
    for row in rows["steps"].values():
        assert 0 < row["share"] <= 1.2 and row["memory_planned"] > 0
        assert row["images_per_second"] == row["batch"] / row["seconds"][1]
        assert math.isfinite(row["loss"])
        assert sum(row["profile"]["kinds"].values()) == pytest.approx(1)
        assert row["profile"]["kinds"]["matrix products"] > 0
        assert 0 <= row["profile"]["waiting"] < 1
        assert sum(row["profile"]["parts"].values()) == pytest.approx(1)
    for way in ("ours", "xla", "none"):
        row = rows["pieces"][f"attention {way}, float32"]
        for name in ("forward", "input_gradient", "all_gradients"):
            assert 0 < row[name][0] <= row[name][1] <= row[name][2]
    (cascade,) = rows["cascades"].values()
    # The radius leaves images to every attack.
    assert cascade["stages"]["clean"] == 1 and cascade["stages"]["square"] > 0
    assert all(cost["forwards"] > 0 for cost in cascade["costs"].values())
    for row in rows["soups"].values():
        passes = row["soups"] * row["images"]
        assert row["passes_per_second"] == passes / row["seconds"][1]
        assert row["times_floor"][1] > 0
    printed = first.stdout.splitlines()
    for part, cases in rows.items():
        for case in cases:
            assert any(line.startswith(f"| {case} |") for line in printed), (part, case)

    # One row is taken away: that one is measured again, and no other.
    del rows["soups"]["adapters, clean"]
    (tmp_path / "results.json").write_text(json.dumps(found))
    second = run(tmp_path, "--minutes=8")
    assert second.returncode == 0, second.stdout + second.stderr
    again = results(tmp_path)
    assert [line for line in second.stdout.splitlines() if line.endswith("...")] == [
        "soups: adapters, clean ..."
    ]
    assert "adapters, clean" in again["rows"]["soups"] and len(again["sittings"]) == 2
    del again["rows"]["soups"]["adapters, clean"]
    assert again["rows"] == rows


@pytest.fixture
def kept(tmp_path):
    """A record of a sitting that has begun."""
    made = record.Record(tmp_path)
    made.go_on({"device": "here"}, {"began": 0.0, "commit": "abc"})
    return made


def test_rows_of_another_device_are_no_rows_of_this_one(kept):
    before = kept.path.read_text()
    with pytest.raises(record.Refused) as refused:
        kept.go_on({"device": "there"}, {"began": 1.0, "commit": "abc"})
    (line,) = str(refused.value).splitlines()
    assert "device 'here', and here it is 'there': give another --output" in line
    assert kept.path.read_text() == before


class Small:
    """A setting as far as it tells how long rows take."""

    size, fast, device = "small", False, None


def rows_of(kept, cases, seconds):
    """The rows of a part of these (name, guess in seconds, function)."""
    made = [worker.Case(name, guess, run) for name, guess, run in cases]
    worker.measure("part", made, Small(), kept, time.time() + seconds)
    return record.Record(kept.path.parent).rows["part"]


def fails(*_):
    raise ValueError("too\nlarge")


def test_a_row_that_fails_stops_no_other(kept):
    rows = rows_of(kept, [("bad", 0, fails), ("good", 0, lambda *_: {"value": 1})], 10)
    assert rows["bad"] == {"error": "ValueError: too\nlarge"}
    assert rows["good"]["value"] == 1
    text = tables.told({"setting": {}, "sittings": [], "rows": {"queue": rows}})
    assert "| bad | error: ValueError: too large |" in text
    assert tables.failed({"part": rows})
    del rows["bad"]
    assert not tables.failed({"part": rows})
    assert tables.failed({"part": {"check": {"passed": False}}})
    # What failed is not tried again in one sitting, but in the next.
    assert kept.done("part", "bad") and kept.done("part", "good")
    kept.go_on({"device": "here"}, {"began": 0.0, "commit": "abc"})
    assert kept.done("part", "bad")
    kept.go_on({"device": "here"}, {"began": 1.0, "commit": "abc"})
    assert not kept.done("part", "bad") and kept.done("part", "good")


def test_rows_are_begun_only_if_there_is_time_for_them(kept):
    pace = worker.PACE["small"]
    seen = []

    def slow(*_):
        seen.append(1)
        time.sleep(0.5)
        return {}

    # The first takes ten times its guess, so the third would take longer than is left.
    cases = [("first", 0.05 / pace, slow), ("long", 100, slow), ("third", 2 / pace, slow)]
    began = time.time()
    rows = rows_of(kept, cases, 20)
    assert time.time() - began < 20 and len(seen) == 1
    assert "seconds_spent" in rows["first"]
    assert rows["long"]["skipped"].startswith("needs about")
    assert rows["third"]["skipped"].startswith("needs about")
    # With more time a second look takes them up.
    assert "seconds_spent" in rows_of(kept, cases, 600)["third"] and len(seen) == 3


def lost(options, began, until):
    """A worker that dies in its first row, and the next time does the second."""
    kept = record.Record(options["output"])
    kept.go_on({}, {"began": began, "commit": ""})
    for case in ("first", "second"):
        if not kept.done("part", case):
            kept.begin("part", case)
            if case == "first":
                os._exit(7)
            kept.put("part", case, {"seconds_spent": 0.0})
    sys.exit(worker.FINISHED)


def stuck(options, began, until):
    """A worker that does not come back."""
    kept = record.Record(options["output"])
    kept.go_on({}, {"began": began, "commit": ""})
    kept.begin("part", "first")
    time.sleep(600)


def refuses(options, began, until):
    """A worker to which the earlier output is of no use."""
    sys.exit(worker.REFUSED)


def useless(options, began, until):
    """A worker that cannot begin."""
    os._exit(1)


def test_workers_may_be_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "GRACE", 0.5)
    options, now = {"output": str(tmp_path)}, time.time()
    assert accelerator.watch(options, now, now + 60, lost) == worker.FINISHED
    rows = record.Record(tmp_path).rows["part"]
    assert rows["first"] == {"error": "its process ended with code 7"}
    assert "seconds_spent" in rows["second"]
    assert accelerator.watch(options, now, now + 60, useless) == 1
    assert accelerator.watch(options, now, now + 60, refuses) == worker.REFUSED
    began = time.time()
    accelerator.watch(options, began, began + 1, stuck)
    assert time.time() - began < 10
    assert record.Record(tmp_path).rows["part"]["first"] == {"error": "the time was up"}


def test_the_queue_goes_on_in_the_next_sitting(kept, monkeypatch, capfd):
    monkeypatch.setattr(queue, "GRACE", 1)
    waiting = (
        ("good", ["-c", "print('through')"]),
        ("bad", ["-c", "raise SystemExit(3)"]),
        ("long", ["-c", "import time; time.sleep(600)"]),
        ("late", ["-c", "print('never')"]),
    )
    queue.work(kept, time.time() + 4, waiting)
    rows = kept.rows["queue"]
    assert "seconds_spent" in rows["good"] and rows["bad"]["error"] == "ended with code 3"
    assert rows["long"]["skipped"] and "late" not in rows
    kept.go_on({"device": "here"}, {"began": 1.0, "commit": "abc"})
    queue.work(kept, time.time() + 60, waiting[:1])
    assert capfd.readouterr().out.count("through") == 1


def test_what_is_asked_for_wrongly_is_refused(capsys):
    for flags, told in (
        (["--parts=steps,speed"], "unknown 'speed'; there are: ceilings"),
        (["--networks=l16"], "unknown 'l16'; there are: b16"),
        (["--methods=trades"], "unknown 'trades'; there are: cotrain"),
    ):
        with pytest.raises(SystemExit) as refused:
            accelerator.read(["--output=x", *flags])
        assert refused.value.code == 2 and told in capsys.readouterr().err


def test_torch_has_the_same_network():
    torch = pytest.importorskip("torch")
    import jax
    import numpy as np
    from parts import in_torch, settings, shapes

    shape = shapes.SHAPES["micro"]
    model = settings.model_of(shape)
    images = settings.images_of(shape, 4)
    params = model.init(jax.random.key(0), images)["params"]
    params = settings.drawn(jax.tree.map(np.asarray, params), 0.2)
    ours = model.apply({"params": params}, images)
    other = in_torch.load(in_torch.ViT(shape), params)
    found = other(torch.tensor(images), torch.zeros(4, dtype=torch.long))
    np.testing.assert_allclose(found.detach().numpy(), ours, rtol=1e-4, atol=1e-4)
