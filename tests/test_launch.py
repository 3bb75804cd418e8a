"""The scripts of launch/: they parse, and the restarts are those that are told."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
# Stands for a run: exits with the next of the codes in a file, or waits to be terminated.
RUN = """#!/usr/bin/env bash
code=$(head -n 1 "$1")
sed -i 1d "$1"
[[ $code == wait ]] || exit "$code"
trap 'exit 143' TERM
touch "$1.waits"
while true; do sleep 0.05; done
"""


@pytest.fixture
def command(tmp_path):
    """codes -> the arguments of a run that ends with them, one after the other."""

    def make(codes):
        (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
        (tmp_path / "run").write_text(RUN)
        return ["bash", LAUNCH / "run.sh", "bash", tmp_path / "run", tmp_path / "codes"]

    return make


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_parses_and_says_how_it_is_used(script):
    subprocess.run(["bash", "-n", script], check=True)
    first, second = script.read_text().splitlines()[:2]
    assert first == "#!/usr/bin/env bash" and second.startswith("# ")
    assert f"launch/{script.name}" in script.read_text().partition("set -")[0]


@pytest.mark.parametrize(
    ("codes", "code", "left"),
    [
        ("1 134 143 0 5", 0, "5"),  # failed, aborted, preempted, done
        ("1 2 0", 2, "0"),  # bad input stays bad
        ("1 1 1 1 0", 1, "0"),  # out of tries
    ],
)
def test_restarts(command, tmp_path, codes, code, left):
    environment = os.environ | {"PAUSE": "0", "TRIES": "4"}
    done = subprocess.run(command(codes), env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "codes").read_text().split()[0] == left


def test_sigterm_is_passed_on_and_ends_it(command, tmp_path):
    process = subprocess.Popen(command("wait 0"))
    while not (tmp_path / "codes.waits").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert (tmp_path / "codes").read_text().split() == ["0"]


def test_gke_builds_pushes_and_starts_with_stand_ins(tmp_path):
    stand_ins = {
        "docker": 'echo "docker $1 ${!#}" >> "$TOLD"',
        "xpk": 'echo "xpk $1 $2" >> "$TOLD"; last=${!#}; eval "${last#--command=}"',
        "advadapters": 'printf "%s\\n" "$@" "$JAX_COMPILATION_CACHE_DIR" >> "$TOLD"',
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    names = ("CLUSTER", "PROJECT", "ZONE", "TYPE", "NAME")
    environment = (
        os.environ
        | dict.fromkeys(names, "a")
        | {
            "IMAGE": "registry/image",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TOLD": f"{tmp_path}/told",
        }
    )
    command = ["bash", LAUNCH / "gke.sh", "train", "--workdir=/bucket/a b"]
    subprocess.run(command, env=environment, check=True)
    lines = (tmp_path / "told").read_text().splitlines()
    (build, push), rest = lines[:2], lines[2:]
    assert build == "docker build ." and push.startswith("docker push registry/image:")
    assert rest == ["xpk workload create", "train", "--workdir=/bucket/a b", "/bucket/xla"]
