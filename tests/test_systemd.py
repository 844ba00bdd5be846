"""The units are what systemd accepts, and say what the design asks for."""

import configparser
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from spool_help import clean_env

from spoolagent.format.spool import create_spool

UNITS = sorted((Path(__file__).parent.parent / "systemd").glob("*.service"))


def test_there_is_a_unit_for_each_side():
    assert [unit.name for unit in UNITS] == ["spoolagent-serve.service", "spoolagent-ship.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit, tmp_path):
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is missing: tools/setup.sh installs it on Debian"
    command = os.path.join(os.path.dirname(sys.executable), "spoolagent")
    text = unit.read_text().replace("/opt/spoolagent/bin/spoolagent", command)
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / unit.name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_unit_restarts_notifies_and_is_confined(unit):
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str
    parser.read(unit)
    service = parser["Service"]
    assert (
        service["Type"] == "notify"
        and service["Restart"] == "always"
        and service["StateDirectory"] == "spoolagent"
    )
    assert (
        service["KillMode"] == "mixed"
        and service["ProtectSystem"] == "strict"
        and service["NoNewPrivileges"] == "yes"
    )
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize("verb", ["serve", "ship"])
def test_a_service_says_ready_and_stopping(verb, tmp_path):
    """What `Type=notify` waits for, through a real socket from a real process."""
    create_spool(str(tmp_path / "spool"))
    to = f"jsonl:{tmp_path}/x.jsonl" if verb == "serve" else str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(60)
        command = [sys.executable, "-m", "spoolagent", verb, "--spool", str(tmp_path / "spool"), "--to", to]
        env = clean_env() | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as service:
            said = [inbox.recv(4096).decode()]
            service.terminate()
            while said[-1] != "STOPPING=1":
                said.append(inbox.recv(4096).decode())
            assert service.wait(60) == 0
    assert said[0] == "READY=1" and set(said[1:-1]) <= {"WATCHDOG=1"}
