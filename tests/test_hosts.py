"""Several processes: how they meet, and that they train as one does. CPUs and gloo."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from advadapters import __main__, hosts
from advadapters.errors import UsageError
from advadapters.runs import workdir

ROOT = pathlib.Path(__file__).parents[1]
# SGD, for the reason in training/test_step.py. What is drawn belongs to images: paths
# and crops.
CONFIG = f"""
import runpy
from advadapters import defaults

def get_config(name=""):
    digits = runpy.run_path("{ROOT}/configs/digits.py")
    config = digits["get_config"]("nominal")
    config.optimizer = defaults.sgd(base_lr=0.5, warmup_epochs=0.5, clip_norm=1.0)
    config.model.size, config.model.patch, config.model.drop_path = "8x1x16x2", 4, 0.3
    config.data.pad = 1
    config.batch_size, config.epochs, config.log_every = 32, 4.0, 1
    config.evaluation.batch_size, config.evaluation.suites = 32, {{}}
    return config
"""
# Two tasks on this machine, with the variables that SLURM sets and jax looks for.
SRUN = f"""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do
  SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost \\
    "{sys.executable}" -m "$@" >>"$OUT/out$i" 2>&1 &
  echo $! >"$OUT/pid$i"
  tasks[i]=$!
done
wait "${{tasks[0]}}"
zero=$?
wait "${{tasks[1]}}"
one=$?
echo "$zero $one" >>"$OUT/codes"
exit $((zero > one ? zero : one))
"""


def free_port():
    """A port that nobody listens at."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition):
    """Returns when it is true."""
    deadline = time.monotonic() + 540
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged(folder):
    """The rows of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return [json.loads(row) for row in file.read_text().splitlines()]


def meet(count, present, seconds, before=lambda address: None):
    """{number: error or None} of the processes that come to meet."""
    address, found = f"127.0.0.1:{free_port()}", {}

    def come(number):
        try:
            found[number] = hosts.meet(address, count, number, seconds)
        except UsageError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=come, args=(number,)) for number in present]
    for thread in threads:
        thread.start()
        before(address)
    for thread in threads:
        thread.join()
    return found


def test_all_meet_whatever_else_calls():
    def disturb(address):
        host, port = address.split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, port)) as one:
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")

    assert meet(3, (0, 1, 2), 60, disturb) == {0: None, 1: None, 2: None}


def test_who_does_not_come_is_named_to_everyone(capfd):
    found = meet(4, (0, 2), 1)
    assert found[0] == found[2] and found[0].startswith("waited 1 s in vain for 2 of 4")
    assert found[0].endswith(": 1, 3")
    assert "waiting for 3 of 4 hosts at 127.0.0.1:" in capfd.readouterr().err
    assert "waited 1 s in vain for host 0 at" in meet(2, (1,), 1)[1]


def test_a_host_that_does_not_come_is_exit_code_2(tmp_path, capsys):
    started = time.monotonic()
    flags = ["--wait=1", f"--distributed=127.0.0.1:{free_port()},3,0"]
    argv = [f"--config={ROOT}/configs/digits.py", f"--workdir={tmp_path}/run"]
    assert __main__.main(["train", *argv, *flags]) == 2
    assert time.monotonic() - started < 5 and not (tmp_path / "run").exists()
    assert "waited 1 s in vain for 2 of 3 hosts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    ["distributed=on", "distributed=:1,2,0", "distributed=a:1,2,2", "distributed=a:0,2,1",
     "distributed=a:1,2", "distributed", "wait=0", "wait=1.5"],
)  # fmt: skip
def test_flags_that_cannot_be_right(flag, capsys):
    assert __main__.main(["train", f"--{flag}"]) == 2
    assert f"--{flag.partition('=')[0]}" in capsys.readouterr().err


def test_clusters_are_detected(monkeypatch):
    for name in list(os.environ):
        if name.startswith(hosts.SIGNS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # but no indexed job
    assert hosts.detect(1) is None
    told = dict(JOB_ID=7, STEP_NODELIST="node[03-05]", NTASKS=6, PROCID=4, LOCALID=0)
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert hosts.detect(1) == ("node03:61447", 6, 4)


def test_a_folder_that_is_not_shared_is_told(tmp_path, monkeypatch):
    # What another host sees when process 0 has made the folder on a disk of its own.
    monkeypatch.setattr(workdir, "make_workdir", lambda *_: tmp_path / "there")
    with pytest.raises(UsageError, match="is not there on host 0: several hosts need"):
        workdir.open_workdir(tmp_path / "there", {})


def test_programs_are_kept_where_one_can_write(tmp_path, monkeypatch):
    name = "JAX_COMPILATION_CACHE_DIR"
    for cache, kept in (
        (tmp_path / "c", f"{tmp_path}/c/advadapters/xla"),
        ("/dev/null", None),
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        __main__.keep_programs()
        assert os.environ.get(name) == kept
    monkeypatch.setenv(name, "")  # switched off
    __main__.keep_programs()
    assert os.environ[name] == ""


@pytest.fixture
def environment(tmp_path):
    """Variables for processes of four devices each, with compiled programs kept here."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    names = {name for name in os.environ if not name.startswith(hosts.SIGNS)}
    kept = {name: os.environ[name] for name in names - {"JAX_COMPILATION_CACHE_DIR"}}
    devices = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    return kept | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "OUT": str(tmp_path),
        "PAUSE": "0",
        "SLURM_JOB_ID": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "JAX_COORDINATOR_PORT": str(free_port()),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": devices,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def write_inputs(folder):
    """The flags for a config and data: 320 images to train with, 32 to test."""
    (folder / "config.py").write_text(CONFIG)
    draw, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 320), ("test", 32)):
        arrays[f"{part}_images"] = draw.integers(0, 256, (count, 8, 8), np.uint8)
        arrays[f"{part}_labels"] = draw.integers(0, 10, count)
    np.savez(folder / "data.npz", **arrays)
    return [
        f"--config={folder}/config.py",
        f"--config.data.source=npz:{folder}/data.npz",
    ]


@pytest.mark.parametrize("tries", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(tmp_path, environment, request, tries):
    """launch/slurm.sh with 2 x 4 devices, which SIGTERM stops, = 1 x 8 devices.

    The second try, or else one process, goes on with what the two have saved.
    """
    argv = write_inputs(tmp_path)
    two, one = tmp_path / "two", tmp_path / "one"
    script = subprocess.Popen(
        ["bash", ROOT / "launch" / "slurm.sh", *argv, f"--workdir={two}"],
        env=environment | {"TRIES": tries},
        start_new_session=True,
    )
    request.addfinalizer(lambda: script.poll() is None and os.killpg(script.pid, 9))
    log = two / "metrics.jsonl"
    wait_for(lambda: script.poll() is not None or log.exists() and logged(two)[2:])
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGTERM)  # jax tells process 0
    code = script.wait(timeout=540)
    codes = (tmp_path / "codes").read_text().split()
    assert (code, codes) == {
        "1": (143, ["143", "143"]),
        "2": (0, ["143", "143", "0", "0"]),
    }[tries]
    saved = [int(path.name) for path in (two / "checkpoints").iterdir()]
    assert min(saved) >= 3 and (tries == "2" or saved == [len(logged(two))])
    for folder in (two, one):
        assert __main__.main(["train", *argv, f"--workdir={folder}"]) == 0

    # Every step is there once, and the same.
    losses = {}
    for folder in (two, one):
        rows = logged(folder)
        assert [row["step"] for row in rows] == list(range(1, 41))
        losses[folder] = np.array([[row["loss"], row["gradient_norm"]] for row in rows])
    assert np.ptp(losses[one][:, 0]) > 0.05
    np.testing.assert_allclose(losses[two], losses[one], rtol=2e-5)
    assert (two / "results.json").read_text() == (one / "results.json").read_text()

    # AutoAttack: each process its own images, together what one finds of all.
    argv = ["--suite=autoattack:apgd-ce", "--norm=linf", "--eps=1/20", "--steps=5"]
    argv += ["--examples=31"]
    address, found = f"127.0.0.1:{free_port()}", {}
    flags = [f"--workdir={two}", *argv, f"--save_images={tmp_path}/moved.npz"]
    run_together(["evaluate", *flags], address, environment)
    assert __main__.main(["evaluate", f"--workdir={one}", *argv]) == 0
    for folder in (two, one):
        rows = json.loads((folder / "evaluation.json").read_text())
        found[folder] = [(row["suite"], row["correct"], row["n"]) for row in rows]
        assert [row[2] for row in found[folder]] == [31, 31]
    assert found[two] == found[one] and found[one][1][1] < found[one][0][1]
    sizes = [len(np.load(f"{tmp_path}/moved-part{i}of2.npz")["labels"]) for i in (0, 1)]
    assert sizes == [16, 15]

    # Process 0 wrote and printed, process 1 did not.
    first, second = ((tmp_path / f"out{i}").read_text() for i in (0, 1))
    assert "stopped: saved after step" in first and "first step after" in first
    assert "step 1/40" in first and "step 1/40" not in second
    names = {path.name.partition(".tfevents")[0] for path in two.iterdir()}
    assert names == {path.name.partition(".tfevents")[0] for path in one.iterdir()}


def run_together(argv, address, environment):
    """The verb in two processes that meet at the address."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "advadapters", *argv, f"--distributed={address},2,{i}"],
            env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=540)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said


def test_what_process_0_returns_or_raises_is_packed():
    rows = [{"name": "a", "value": 0.5, "none": None}]
    assert hosts._unpack(hosts._pack(rows, None)) == rows
    with pytest.raises(UsageError, match="^a message$"):
        hosts._unpack(hosts._pack(None, UsageError("a message")))
    with pytest.raises(RuntimeError, match="^broken$"):
        hosts._unpack(hosts._pack(None, OSError("broken")))


def test_a_second_start_does_not_compile_again(environment):
    code = """if True:
        from advadapters import __main__
        __main__.keep_programs()
        import jax
        events = []
        jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
        jax.jit(lambda x: 2 * x)(1.0)
        print([event.rpartition("/")[2] for event in events if "/cache_" in event])
    """
    for told in ("['cache_misses']", "['cache_hits']"):
        command = [sys.executable, "-c", code]
        assert subprocess.check_output(command, env=environment, text=True).strip() == told


def test_one_that_fails_stops_the_others(tmp_path, environment):
    argv = [sys.executable, "-m", "advadapters", "train", "--config=configs/digits.py"]
    address = f"127.0.0.1:{free_port()}"
    told = ([], ["--config.seed=x"])
    processes = [
        subprocess.Popen(
            [*argv, f"--workdir={tmp_path}/run", f"--distributed={address},2,{i}", *more],
            env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for i, more in enumerate(told)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "stopped, as host 1 has failed: flag --config.seed=x" in said[0], said[0]
    assert "advadapters train: flag --config.seed=x" in said[1]
