"""The command line as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cli_files import write_kl, write_picture
from conftest import ROOT

from sd_vae_kit import __main__ as entry
from sd_vae_kit import cli


def run(*words, cwd, **variables):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(cwd / "home"), **variables}
    command = [sys.executable, "-m", "sd_vae_kit", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_one_object_on_stdout_and_nothing_on_stderr(tmp_path):
    write_kl(tmp_path / "Größe 図.safetensors", family="sd1")
    write_picture(tmp_path / "a b.png", 13, 17)
    done = run("encode", "a b.png", "-o", "out.safetensors", "--vae", "Größe 図.safetensors", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["plan"] == "whole"
    shown = run("inspect", "Größe 図.safetensors", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Gr??e ?.safetensors" in shown.stdout


def test_a_users_error_is_one_line_and_exit_code_2(tmp_path):
    done = run("inspect", "gone.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: There is no file gone.safetensors")


def test_help_shows_the_commands_and_the_apps_options(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("inspect", "encode", "decode", "convert", "compare", "--port"):
        assert word in done.stdout


def test_the_installed_command_alone_shows_what_there_is_and_opens_no_page(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vae-kit"])
    with pytest.raises(SystemExit) as ended:
        entry.console()
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(word in shown for word in ("inspect", "download", "--port"))


def test_the_installed_command_runs_a_command(monkeypatch, capsys, tmp_path):
    write_kl(tmp_path / "a.safetensors", family="sd1")
    monkeypatch.setattr(sys, "argv", ["vae-kit", "inspect", str(tmp_path / "a.safetensors"), "--json"])
    assert entry.console() == 0
    assert json.loads(capsys.readouterr().out)["family"] == "sd1"


def test_asking_for_help_imports_neither_torch_nor_gradio():
    code = (
        "import sys; from sd_vae_kit import cli\n"
        "assert cli.main(['encode', '--help']) == 0 and cli.main(['bogus']) == 2\n"
        "found = {'torch', 'gradio', 'numpy', 'PIL'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_running_a_command_does_not_import_gradio(tmp_path):
    write_kl(tmp_path / "a.safetensors", family="sd1")
    words = ["inspect", str(tmp_path / "a.safetensors"), "--data-dir", str(tmp_path / "data")]
    code = f"import sys; from sd_vae_kit import cli; assert cli.main({words}) == 0; assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_ctrl_c_ends_with_130_and_without_a_traceback(tmp_path):
    (tmp_path / "sd_vae_kit_pause.py").write_text(
        "import time\nfrom sd_vae_kit import cli\nfrom sd_vae_kit.cli.program import run\n"
        "def wait(options):\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "cli.COMMANDS['inspect'] = wait\nraise SystemExit(run(['inspect', 'x']))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "sd_vae_kit_pause.py")],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores Ctrl-C, and so would everything started by these tests
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "Stopped.\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ("app", [])),
        (["--port", "1"], ("app", ["--port", "1"])),
        (["app", "--help"], ("app", ["--help"])),
        (["inspect", "x"], ("cli", ["inspect", "x"])),
        (["inspekt"], ("cli", ["inspekt"])),
        (["--version"], ("cli", ["--version"])),
    ],
)
def test_the_first_word_decides_between_app_and_commands(monkeypatch, argv, expected):
    from sd_vae_kit.cli import program
    from sd_vae_kit.standalone import app

    called = []
    monkeypatch.setattr(app, "main", lambda words: called.append(("app", words)) or 0)
    monkeypatch.setattr(program, "run", lambda words: called.append(("cli", words)) or 0)
    assert entry.main(argv) == 0
    assert called == [expected]


def test_version(capsys):
    from sd_vae_kit import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"VAE Kit {__version__}\n"


def test_a_defect_of_ours_is_not_dressed_up_as_the_users_error(monkeypatch):
    def broken(_options):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "inspect", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "x"])
