"""The hosts' own VAE classes, in the hosts' own Python and torch, streamed as exactly as ours."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from installation import QUIET
from programs import A1111, FORGE

pytestmark = pytest.mark.webui
SCRIPT = Path(__file__).parent / "host_networks.py"


@pytest.mark.parametrize(("host", "name"), [(A1111, "sd3"), (A1111, "ldm"), (A1111, "sgm"), (FORGE, "forge")])
def test_the_hosts_network_is_streamed_exactly(host, name):
    folder = host.folder()
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = subprocess.run(
        [str(python), "-W", "ignore", str(SCRIPT), str(folder), name],
        capture_output=True, text=True, env={**os.environ, **QUIET, "OMP_NUM_THREADS": "1"}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == 2
    for answer in answers:
        assert answer["bands"] > 2 * answer["steps"]
        assert answer["difference"] <= 2e-5 * max(1.0, answer["size"])
