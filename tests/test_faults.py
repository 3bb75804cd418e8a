"""Faults of disks, of files beside a state, and of users with two terminals."""

import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zlib

import pytest

from advadapters import __main__ as program
from advadapters import files, hosts
from advadapters.commands import doctor
from advadapters.data import imaging
from advadapters.errors import UsageError
from advadapters.runs import workdir


def log_of(folder, text):
    """The Log of a folder whose metrics.jsonl is this text, at step 3."""
    (folder / "metrics.jsonl").write_bytes(text)
    return workdir.Log(folder, 3)


def test_a_mean_that_was_not_finite_is_read_again(tmp_path):
    log = log_of(tmp_path, b'{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n')
    assert log.read() == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
    log.write(4, {"loss": float("nan")})
    log.close()
    assert log.read()[-1] == {"step": 4, "loss": None}


@pytest.mark.parametrize(
    "bad", (b'{"step": 2, "lo', b"[1]", b"7", b'{"a": 1}', b"\xff\x00")
)
def test_only_the_damaged_line_is_lost(bad, tmp_path, capsys):
    log = log_of(tmp_path, b'{"step": 1}\n' + bad + b'\n{"step": 3}\n')
    log.close()
    assert log.read() == [{"step": 1}, {"step": 3}]
    assert "lines that are no rows are left out: [2]" in capsys.readouterr().out


def test_a_last_line_that_was_cut_is_no_fault(tmp_path, capsys):
    log = log_of(tmp_path, b'{"step": 1}\n{"ste')
    log.close()
    assert log.read() == [{"step": 1}] and not capsys.readouterr().out


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    """Another one is refused, and a killed one leaves no lock behind."""
    hold = "import sys, time; from advadapters.runs import workdir\n"
    hold += f"with workdir.alone({os.fspath(tmp_path)!r}): print('locked', flush=True); "
    hold += "time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UsageError, match="another process is training in"):
            with workdir.alone(tmp_path):
                pass
    finally:
        other.kill()
        other.communicate()
    with workdir.alone(tmp_path):
        pass
    with workdir.alone(tmp_path):
        pass


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_signals_ask_a_run_to_stop(number):
    before = signal.getsignal(number)
    with hosts.signals() as leave:
        assert leave(1) == 0
        os.kill(os.getpid(), number)
        assert leave(2) == number
        assert signal.getsignal(number) == before  # a second one ends the process
    assert signal.getsignal(number) == before


def raised(*errors):
    """An error that the others led to."""
    try:
        try:
            raise errors[0]
        except Exception as first:
            raise errors[-1] from first
    except Exception as last:
        return last


def test_troubles_of_disks_are_told_from_other_errors(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x")
    text = ValueError("INTERNAL: Error writing: No space left on device [/runs/x]")
    assert files.trouble(full).startswith("the disk is full (/runs/x): ")
    assert files.trouble(raised(full, RuntimeError("later"))).startswith("the disk is full")
    assert files.trouble(raised(text, RuntimeError("later"))).startswith("the disk is full")
    assert not files.trouble(ValueError("another"))
    assert not files.trouble(FileNotFoundError(errno.ENOENT, "no such file"))


SMALL = ("--config.model.size=64x2x128x2", "--config.epochs=1.0", "--config.log_every=5",
         "--config.checkpoint_every=2", "--config.evaluation.suites={}",
         "--config.evaluation.soup_weights=(1.0,)")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/full"), reason="needs to mount a disk"
)
def test_a_full_disk_is_one_line(tmp_path):
    """A real one of 2.5 MB. The state before is whole, and goes on when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", os.fspath(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount")
    command = [sys.executable, "-m", "advadapters", "train", "--config=digits", *SMALL]
    command.append(f"--workdir={disk}/run")
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == files.TROUBLE, done.stderr
        assert done.stderr.count("\n") == 1 and "the disk is full" in done.stderr
        grow = ["mount", "-o", "remount,size=50m", os.fspath(disk)]
        assert subprocess.run(grow, capture_output=True).returncode == 0
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "resuming at step" in done.stdout
        rows = json.loads((disk / "run" / "results.json").read_text())
        assert rows
    finally:
        subprocess.run(["umount", "-l", os.fspath(disk)], check=True)


def png(side):
    """A black PNG, which is small however many pixels it has."""

    def chunk(name, data):
        code = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", code)

    row, packer = b"\0" * (3 * side + 1), zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_an_image_of_gigabytes_is_not_decoded():
    bomb = png(12_000)
    assert len(bomb) < 500_000 and 12_000**2 > imaging.PIXELS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert imaging.decode(bomb, 3) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert imaging.decode(png(64), 3).shape == (64, 64, 3)


@pytest.mark.parametrize("text", ("[1]", "7", "null", '{"a": 1}', '[{"value": 1}]', "[["))
def test_results_that_are_none_are_made_again(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    assert workdir.read_results(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path):
    """A file system that is read-only: root may write to everything else."""
    workdir.need_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="cannot write to /proc/self, where the results"):
        workdir.need_writable("/proc/self")


def test_ctrl_c_elsewhere_is_one_line(monkeypatch, capsys):
    def interrupted(flags: doctor.Flags) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "main", interrupted)
    assert program.main(["doctor"]) == 130
    assert capsys.readouterr().err == "advadapters doctor: stopped by Ctrl-C\n"
