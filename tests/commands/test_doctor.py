"""`advadapters doctor`: times against a clock that the test winds, and what it says."""

import json
import pathlib

import numpy as np
import pytest

from advadapters.__main__ import main
from advadapters.commands import doctor
from advadapters.data import imaging, pipeline, splits, timing
from advadapters.data.encoded import Encoded

DIGITS = "--config=" + str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")


def test_stages_take_what_they_take(monkeypatch):
    now = np.zeros(2)  # by CPU, on the clock

    def takes(cpu, clock, result):
        def run(*_):
            now[:] += (cpu, clock)
            return result

        return run

    class Reader:
        labels = np.zeros(10, np.int32)
        read = staticmethod(takes(2, 9, (b"", 0)))
        __len__ = lambda self: 10  # noqa: E731

    whole = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(timing, "clocks", lambda: tuple(now))
    monkeypatch.setattr(imaging, "decode", takes(30, 30, whole))
    monkeypatch.setattr(imaging, "random_resized_crop", takes(5, 5, whole))
    monkeypatch.setattr(pipeline, "stack_examples", takes(100, 100, None))
    split = splits.Subset(Encoded(Reader(), 3, False), np.arange(10)[::-1])
    found = timing.stages(split, np.zeros(100, int), 4, "random_resized")
    # 100 images are two batches of at most 64.
    assert found == {"read": 2, "waiting": 7, "decode": 30, "crop": 5, "batch": 2}


def test_cores_for_chips(capsys):
    found = {"host": {"cores": 16}, "data": {"core": {"median": 250.0}}}
    told = doctor.needed(found, 600.0, 8)
    assert told["cores"] == 20 and told["hosts_like_this"] == 2  # 4800 / 250 = 19.2
    assert "8 chips at 600 images/s need 20 cores" in doctor.advice(told, found["host"])


@pytest.mark.parametrize("given", [DIGITS, "--data=blank:1437"])
def test_the_whole_command(given, tmp_path, capsys):
    output, workdir = tmp_path / "found.json", tmp_path / "new" / "run"
    channels = ["--config.data.threads=1"] if given == DIGITS else []
    flags = ["--images=70", "--rounds=2", "--images_per_second=9", f"--output={output}"]
    code = main(["doctor", given, f"--workdir={workdir}", *channels, *flags])
    told, found = capsys.readouterr().out, json.loads(output.read_text())
    assert code == 0 and not workdir.parent.exists()
    assert "versions: python 3" in told and "devices: cpu 8" in told
    assert "| all together: " in told and "2 x 70 of 1,437 images" in told
    assert found["data"]["threads"] == (1 if given == DIGITS else 2)
    stages = found["data"]["stages"].values()
    assert all(0 <= s["low"] <= s["median"] <= s["high"] < 0.1 for s in stages)
    assert found["needed"]["cores"] == 1 and found["data"]["together"]["low"] > 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--images=0"], "--images must be a positive whole number, got '0'"),
        (["--images_per_second=nan", "--data=digits"], "--images_per_second must be"),
        (["--images_per_second=5"], "give --data or --config"),
        ([DIGITS, "--data=digits"], "--data and --config both name images"),
        (["--data=folder:/no/such"], "/no/such is not there"),
        (["--workdir=/proc/none/run"], "cannot use /proc/none/run as a workdir"),
        (["--workdir=/dev/null/run"], "cannot use /dev/null/run as a workdir"),
    ],
)
def test_bad_input(flags, message, capsys):
    assert main(["doctor", *flags]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
