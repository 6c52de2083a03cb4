"""launch.py, started as a user starts it, in a folder with spaces and umlauts; a stand-in for pip notes its calls."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import ROOT

LOCK = """\
# The app's own.
one==1.0
two==2.0; python_version >= "3.10"  # a reason
"""
TEST_LOCK = "three==3.0\n"
# Stand-in for pip: notes the lines of the files it is given, then does what the file `behaviour` says.
FAKE_PIP = """\
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
files = [after for word, after in zip(sys.argv, sys.argv[1:]) if word == "-r"]
lines = [line.split("#")[0].strip() for name in files for line in open(name, encoding="utf-8")]
with open(here / "calls", "a") as file:
    file.write(json.dumps([line for line in lines if line]) + "\\n")
print("pip says hello")
behaviour = here / "behaviour"
what = behaviour.read_text() if behaviour.exists() else "0"
if what == "die":
    os._exit(9)
if what == "wait":
    time.sleep(60)
sys.exit(int(what))
"""
# Stand-in for the package: prints what it was started with.
FAKE_MAIN = """\
import json, os, sys
names = ("ONEDNN_MAX_CPU_ISA", "PYTHONPATH")
print(json.dumps({"module": MODULE, "argv": sys.argv[1:], "cwd": os.getcwd(), **{n: os.environ.get(n) for n in names}}))
sys.exit(int(os.environ.get("FAKE_EXIT", "0")))
"""


class Copy:
    """A copy of launch.py with stand-ins around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sd_vae_kit").mkdir(parents=True)
        shutil.copy(ROOT / "launch.py", root)
        self.write_lock(LOCK)
        self.write_lock(TEST_LOCK, "requirements-test.lock")
        (root / "sd_vae_kit" / "__init__.py").touch()
        for name in ("__main__", "cli"):
            (root / "sd_vae_kit" / f"{name}.py").write_text(f"MODULE = {name!r}\n{FAKE_MAIN}", "utf-8")

    def write_lock(self, text: str, name: str = "requirements.lock") -> None:
        (self.root / name).write_text(text, "utf-8")

    @property
    def packages(self) -> Path:
        if os.name == "nt":
            return self.root / ".venv" / "Lib" / "site-packages"
        return self.root / ".venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def add_module(self, name: str, source: str) -> None:
        (self.packages / name).mkdir(exist_ok=True)
        (self.packages / name / "__init__.py").touch()
        (self.packages / name / "__main__.py").write_text(source, "utf-8")

    def add_environment(self) -> None:
        command = [sys.executable, "-m", "venv", "--without-pip", str(self.root / ".venv")]
        subprocess.run(command, check=True)
        self.add_module("pip", FAKE_PIP)

    def let_pip(self, behaviour: str) -> None:
        (self.packages / "pip" / "behaviour").write_text(behaviour)

    def pip_calls(self) -> list[list[str]]:
        """Requirements of each call of pip."""
        calls = self.packages / "pip" / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [json.loads(line) for line in lines]

    def start(self, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"} | variables
        command = [sys.executable, str(self.root / "launch.py"), *arguments]
        return subprocess.run(
            command, cwd=cwd or self.root.parent, env=environ, capture_output=True, text=True, timeout=100, check=False
        )


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    copy = Copy(tmp_path / "VAE Kit (ä 図)")
    copy.add_environment()
    return copy


@pytest.fixture
def launch() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("launch_under_test", ROOT / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_first_start_installs_and_the_second_only_hands_over(copy: Copy) -> None:
    first = copy.start("--port", "7860")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["argv"] == ["--port", "7860"]
    assert "pip says hello" in first.stderr, "pip's output must not get between a script and --json"
    assert copy.pip_calls() == [["one==1.0", 'two==2.0; python_version >= "3.10"']]

    took = []
    for _ in range(3):
        began = time.perf_counter()
        second = copy.start()
        took.append(time.perf_counter() - began)
        assert second.returncode == 0
        assert second.stderr == ""
    assert len(copy.pip_calls()) == 1
    assert min(took) < 2, "nothing to install: the start itself takes a fraction of a second on a quiet machine"


def test_a_changed_lock_is_installed_and_a_changed_comment_is_not(copy: Copy) -> None:
    copy.start()
    copy.write_lock(LOCK.replace("a reason", "another reason"))
    copy.start()
    assert len(copy.pip_calls()) == 1
    copy.write_lock(LOCK.replace("one==1.0", "one==1.1"))
    copy.start()
    assert copy.pip_calls()[1][0] == "one==1.1"
    copy.write_lock(LOCK.replace("one==1.0", "one==1.1").replace("3.10", "3.11"))
    copy.start()
    assert len(copy.pip_calls()) == 3, "a marker is part of a requirement"


def test_the_number_of_packages_is_said_not_of_lines(copy: Copy) -> None:
    copy.write_lock('one==1.1; python_version >= "3.11"\none==1.0; python_version < "3.11"\ntwo==2.0\n')
    assert "Installing 2 requirements" in copy.start().stderr


def test_the_test_extra_is_installed_by_test_only_and_survives_other_starts(copy: Copy) -> None:
    for module in ("ruff", "mypy", "pytest"):
        copy.add_module(module, "")
    assert copy.start("test").returncode == 0
    assert copy.pip_calls() == [["one==1.0", 'two==2.0; python_version >= "3.10"', "three==3.0"]]
    copy.start()
    copy.start("test")
    assert len(copy.pip_calls()) == 1
    copy.write_lock(TEST_LOCK.replace("three==3.0", "three==3.1"), "requirements-test.lock")
    copy.start("test")
    assert copy.pip_calls()[1][-1] == "three==3.1"


def test_exit_codes_and_arguments_pass_through_and_the_users_folder_stays_current(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stray file beside the user was imported')")
    done = copy.start("cli", "inspect", "a b.safetensors", cwd=tmp_path, FAKE_EXIT="2", PYTHONPATH="elsewhere")
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    assert told["module"] == "cli"
    assert told["argv"] == ["inspect", "a b.safetensors"]
    assert Path(told["cwd"]) == tmp_path
    assert told["PYTHONPATH"] is None
    assert told["ONEDNN_MAX_CPU_ISA"] is None


def test_a_failing_pip_gives_one_line_and_the_next_start_tries_again(copy: Copy) -> None:
    copy.let_pip("1")
    done = copy.start()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "pip failed with exit code 1" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    copy.let_pip("0")
    assert copy.start().returncode == 0
    assert len(copy.pip_calls()) == 2


@pytest.mark.parametrize(
    "damage", ["killed pip", "no pip", "no interpreter", "no pyvenv.cfg", "an empty folder", "a file"]
)
def test_a_half_made_environment_is_made_again(copy: Copy, damage: str, launch: types.ModuleType, monkeypatch) -> None:
    """Only the decision: making a real environment takes seconds and is tried once, below."""
    folder = copy.root / ".venv"
    if damage == "killed pip":
        copy.let_pip("die")
        assert copy.start().returncode == 1
        copy.let_pip("0")
        (folder / "vae-kit-installing").touch()  # as if launch.py had been killed too
    elif damage == "no pip":
        shutil.rmtree(copy.packages / "pip")
    elif damage == "no interpreter":
        shutil.rmtree(launch.Environment(copy.root).python.parent)
    elif damage == "no pyvenv.cfg":
        (folder / "pyvenv.cfg").unlink()
    else:
        shutil.rmtree(folder)
        folder.touch() if damage == "a file" else folder.mkdir()
    made = []
    monkeypatch.setattr(launch, "make_environment", made.append)
    monkeypatch.setattr(launch, "install", lambda *_: None)
    monkeypatch.setattr(launch, "record", lambda *_: None)
    launch.prepare(launch.Environment(copy.root), [])
    assert made == [launch.Environment(copy.root)]


def test_a_real_environment_is_made_where_there_was_half_of_one(copy: Copy) -> None:
    copy.write_lock("# nothing\n")
    shutil.rmtree(copy.packages / "pip")
    leftover = copy.packages / "half" / "installed.py"
    leftover.parent.mkdir()
    leftover.touch()
    done = copy.start()
    assert done.returncode == 0, done.stderr
    assert not leftover.exists()
    assert (copy.packages / "pip").is_dir()
    assert copy.start().stderr == ""


@pytest.mark.parametrize(
    ("version", "implementation", "reason"),
    [
        ((3, 9, 18), "cpython", "needs 64-bit CPython 3.10 to 3.14"),
        ((3, 15, 0), "cpython", "needs 64-bit CPython 3.10 to 3.14"),
        ((2, 7, 18), "cpython", "needs 64-bit CPython 3.10 to 3.14"),
        ((3, 11, 0), "pypy", "needs 64-bit CPython 3.10 to 3.14"),
        ((3, 10, 0), "cpython", ""),
        ((3, 14, 9), "cpython", ""),
    ],
)
def test_an_unsupported_python_is_told_so(launch, monkeypatch, version, implementation, reason) -> None:
    monkeypatch.setattr(launch.sys, "version_info", version)
    monkeypatch.setattr(launch.sys, "implementation", namedtuple("Implementation", "name")(implementation))
    monkeypatch.setattr(launch.sys, "platform", "linux")
    assert reason in launch.unsupported()
    assert bool(reason) == bool(launch.unsupported())
    assert "\n" not in launch.unsupported()


def test_an_unsupported_python_touches_nothing(launch, monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(launch, "unsupported", lambda: "needs another Python")
    assert launch.main([], tmp_path) == 2
    assert capsys.readouterr().err == "needs another Python\n"
    assert list(tmp_path.iterdir()) == []


def test_launch_py_parses_on_pythons_that_are_too_old_to_run_it() -> None:
    """Python 3.7 is the oldest that knows `from __future__ import annotations`."""
    import ast

    ast.parse((ROOT / "launch.py").read_text("utf-8"), feature_version=(3, 7))


def test_help_installs_nothing(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "fresh")
    done = copy.start("--help")
    assert done.returncode == 0
    assert "python launch.py test" in done.stdout
    assert not (copy.root / ".venv").exists()


def test_bench_is_refused_where_there_is_none(copy: Copy) -> None:
    done = copy.start("bench")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no bench/__main__.py" in done.stderr
    assert copy.pip_calls() == []


def test_bench_runs_with_reproducible_arithmetic_unless_told_otherwise(copy: Copy) -> None:
    (copy.root / "bench").mkdir()
    (copy.root / "bench" / "__init__.py").touch()
    (copy.root / "bench" / "__main__.py").write_text(f"MODULE = 'bench'\n{FAKE_MAIN}", "utf-8")
    assert json.loads(copy.start("bench", "--all").stdout)["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    assert json.loads(copy.start("bench", ONEDNN_MAX_CPU_ISA="AVX2").stdout)["ONEDNN_MAX_CPU_ISA"] == "AVX2"


CHECKS = (
    "import sys, pathlib; p = pathlib.Path('ran'); p.open('a').write(NAME + ' ' + ' '.join(sys.argv[1:]) + '\\n'); "
)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["ruff check", "ruff format --check", "mypy ", "pytest "]),
        (["--ci"], ["ruff check", "ruff format --check", "mypy ", "pytest --durations=10"]),
        (["--ci", "-x"], ["ruff check", "ruff format --check", "mypy ", "pytest --durations=10 -x"]),
        (["tests/cli", "-k", "a or b"], ["pytest tests/cli -k a or b"]),
    ],
)
def test_test_runs_the_four_checks_or_only_the_tests_asked_for(copy: Copy, arguments, expected) -> None:
    for name in ("ruff", "mypy", "pytest"):
        copy.add_module(name, f"NAME = {name!r}\n{CHECKS}")
    assert copy.start("test", *arguments).returncode == 0
    assert (copy.root / "ran").read_text().splitlines() == expected


def test_every_check_runs_and_the_first_failure_decides(copy: Copy) -> None:
    copy.add_module("ruff", "import sys; sys.exit(3 if 'format' in sys.argv else 0)")
    copy.add_module("mypy", "import sys; sys.exit(1)")
    copy.add_module("pytest", "print('7 passed in 0.01s')")
    done = copy.start("test")
    assert done.returncode == 3
    assert done.stdout == "7 passed in 0.01s\n"
    assert done.stderr.splitlines()[-1] == "Failed: ruff format, mypy"


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_ctrl_c_while_pip_runs_ends_without_a_traceback(copy: Copy) -> None:
    copy.let_pip("wait")
    command = [sys.executable, str(copy.root / "launch.py")]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background job ignores Ctrl-C, and so would everything started by these tests
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for _ in range(200):
            if copy.pip_calls():
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # what the terminal does
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "Stopped. The same command goes on from here."
    assert "launch.py" not in errors, "a traceback of the stand-in is its own affair, not one of launch.py"
    copy.let_pip("0")
    assert copy.start().returncode == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "The virtual environment was not created successfully because ensurepip is not available.\n"
            "    apt install python3.11-venv\n\nFailing command: /x/python",
            "this Python cannot make environments with pip; on Debian and Ubuntu: apt install python3.",
        ),
        ("Error: [Errno 28] No space left on device: '/x'", "Error: [Errno 28] No space left on device: '/x'."),
        ("", "no reason was given."),
    ],
)
def test_an_environment_that_cannot_be_made_gives_one_line(launch, monkeypatch, tmp_path: Path, said, reason) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout=said, stderr="")
    monkeypatch.setattr(launch.subprocess, "run", lambda *_args, **_kwargs: failed)
    with pytest.raises(launch.LaunchError) as caught:
        launch.make_environment(launch.Environment(tmp_path))
    assert f"Could not make {tmp_path / '.venv'}: {reason}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["requirements.lock", "requirements-test.lock"])
def test_an_incomplete_copy_is_named(copy: Copy, missing: str) -> None:
    copy.start()
    (copy.root / missing).unlink()
    done = copy.start()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
