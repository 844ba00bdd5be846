"""Every example runs as its reader would run it, and what it logs arrives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from spool_help import clean_env, until

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(p.name for p in EXAMPLES.glob("*.py") if p.name != "custom_receiver.py")


def run(args, folder, **env):
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env=clean_env(SPOOLAGENT_SITE="site-1", **env),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs_and_is_replayed(script, tmp_path):
    run([EXAMPLES / script], tmp_path)
    run(
        [
            "-m",
            "spoolagent",
            "replay",
            "spool",
            "--to",
            f"jsonl:{tmp_path}/out.jsonl",
            "--to",
            f"tensorboard:{tmp_path}/tb",
        ],
        tmp_path,
    )
    events = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {e["status"] for e in events if e["type"] == "run_state"} == {"finished"}
    assert sum(e["type"] == "metrics" for e in events) >= 4
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))


def test_every_example_is_in_the_readme():
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in SCRIPTS if f"examples/{name}" not in text] == []


def test_the_custom_receiver_is_found_by_its_entry_point(tmp_path):
    """As its own distribution: a module and an entry point on the path, nothing registered in ours."""
    (tmp_path / "custom_receiver.py").write_text((EXAMPLES / "custom_receiver.py").read_text())
    info = tmp_path / "lastvalues-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lastvalues\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[spoolagent.receivers]\nlastvalues = custom_receiver:LastValues\n"
    )
    run([EXAMPLES / "native.py"], tmp_path, SPOOLAGENT_RUN="r1")
    for _ in range(2):
        run(["-m", "spoolagent", "replay", "spool", "--to", "lastvalues:last"], tmp_path, PYTHONPATH=tmp_path)
    shown = json.loads((tmp_path / "last" / "site-1--r1.json").read_text())
    assert shown["status"] == "finished" and shown["lr"] == 0.1 / 50


def test_the_readme_and_the_writer_of_docs_receivers_run(tmp_path):
    """The Python of README's native example and of docs/receivers.md, as it stands there."""
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    native = next(code for code in readme if "with Run(" in code)
    meter = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "receivers.md").read_text(), re.DOTALL)[0]
    use = meter + "\nmeter = Meter('p')\nmeter('x', 1.5)\nmeter('x', 2.5)\nmeter.close()\n"
    for code in (native, use):
        run(["-c", code], tmp_path)
    listed = json.loads(run(["-m", "spoolagent", "ls", "spool", "--json"], tmp_path))
    text = json.dumps(listed)
    assert text.count('"finished"') >= 2, text
    imports = next(code for code in readme if "SummaryWriter" in code)
    run(["-c", imports], tmp_path)
    assert os.path.isdir(tmp_path / "spool")


def test_the_commands_of_the_readme_run(tmp_path):
    """Every `$ spoolagent ...` of the README, with its absolute paths and its server moved into the test's folder."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("$ spoolagent")]
    assert {line.split()[2] for line in commands} == {"replay", "ship", "serve", "status"}
    run([EXAMPLES / "native.py"], tmp_path)
    order = ["replay", "ship", "serve", "status"]
    for line in sorted(commands, key=lambda c: order.index(c.split()[2])):
        words = line.split("#")[0].split()[2:]
        words = [re.sub(r"(?<![\w.])/(mnt|srv)", str(tmp_path), word) for word in words]
        words = [
            word.replace("mlflow:http://mlflow:5000", f"mlflow:sqlite:///{tmp_path}/m.db") for word in words
        ]
        if words[0] == "ship":
            os.makedirs(tmp_path / "server", exist_ok=True)
            run(["-m", "spoolagent", *words, "--once"], tmp_path)
            os.rename(tmp_path / "server" / "spool", tmp_path / "spool-of-server")
        elif words[0] == "serve":
            os.rename(tmp_path / "spool", tmp_path / "client-spool")
            os.rename(tmp_path / "spool-of-server", tmp_path / "spool")
            command = [sys.executable, "-m", "spoolagent", *words]
            with subprocess.Popen(
                command, cwd=tmp_path, env=clean_env(), stderr=subprocess.PIPE, text=True
            ) as served:
                assert "serving" in served.stderr.readline()
                until(
                    lambda: list((tmp_path / "tb").rglob("events.out.tfevents.*")), 60, "TensorBoard's file"
                )
                served.terminate()
                assert served.wait(60) == 0
        else:
            assert run(["-m", "spoolagent", *words], tmp_path) or words[0] == "replay"
