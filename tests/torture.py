"""Everything random or measured, at its large size: `make torture`.

    python tests/torture.py [--schedules N] [--kills N] [--waiting N] [--streams N] [--finished N] [--seed N] [--jobs N]
                            [--out DIR] [--only STAGE ...]

Stages run one after the other, each with all the cores: `schedules` (the model-based test), `bytes` (damage at every
byte), `kill` (SIGKILL of real processes), `figures` (memory and open files, alone on the machine). Each leaves
`STAGE.log` and `STAGE.json` in DIR; the sum of all is printed as a table and written to `report.json` and
`report.md`. Exit code 1 when a test failed, or when less was done than was asked for.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import report_facts

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("schedules", "bytes", "kill", "figures")


def environment(args, seed, report):
    """The sizes, for every process of pytest."""
    return os.environ | {
        "SPOOLAGENT_SCHEDULES": str(args.schedules),
        "SPOOLAGENT_KILLS": str(args.kills),
        "SPOOLAGENT_EVERY_BYTE": "1",
        "SPOOLAGENT_WAITING": str(args.waiting),
        "SPOOLAGENT_STREAMS": str(args.streams),
        "SPOOLAGENT_FINISHED": str(args.finished),
        "SPOOLAGENT_SETTLE": "45",
        "SPOOLAGENT_IDLE": "40",
        "SPOOLAGENT_SEED": str(seed),
        "SPOOLAGENT_REPORT": str(report),
    }


def run(stage, args, seed):
    """One stage; its exit code and what it counted. What it prints goes to the terminal and to its log."""
    out = Path(args.out).resolve()
    log, report = out / f"{stage}.log", out / f"{stage}.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-v", "-m", stage, "--timeout", "0", "--durations", "10"]
    if stage != "figures":  # worksteal: the schedules of one file go to all workers
        command += ["-n", str(args.jobs), "--dist", "worksteal" if stage == "schedules" else "load"]
        command += ["--maxschedchunk", "1"] if stage != "schedules" else []
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(args, seed, report),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            file.write(line)
        code = process.wait()
    return code, json.loads(report.read_text()) if report.exists() else {}


def shortfalls(args, facts):
    """What was asked for and not done."""
    wanted = {
        "schedules": ("schedules", args.schedules, facts.get("schedules", {}).get("schedules", 0)),
        "bytes": ("byte positions", 1, sum(facts.get("byte positions tested", {}).values())),
        "kill": ("SIGKILLs of our processes", args.kills, our_kills(facts)),
    }
    return [
        f"only {done:,} {what}, {least:,} were asked for"
        for stage, (what, least, done) in wanted.items()
        if stage in args.only and done < least
    ]


def our_kills(facts):
    """SIGKILLs that hit a process of ours: all but those of the MLflow server."""
    found = facts.get("SIGKILLs", {})
    return sum(number for name, number in found.items() if "MLflow server" not in name)


def main(arguments=None):
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--waiting", type=int, default=10_000_000)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SPOOLAGENT_SEED", "0")))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="torture-out")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    args = parser.parse_args(arguments)
    seed = args.seed or random.SystemRandom().randrange(1, 10**6)
    os.makedirs(args.out, exist_ok=True)
    print(f"seed {seed}", flush=True)
    facts, failed = {"run": {"seed": [seed], "stages": args.only}}, []
    for stage in args.only:
        began = time.monotonic()
        code, found = run(stage, args, seed)
        report_facts.merge(facts, found)
        facts["run"][f"{stage}, s"] = round(time.monotonic() - began)
        if code:
            failed.append(f"{stage}: pytest ended with {code}, see {args.out}/{stage}.log")
    facts["run"]["SIGKILLs of our processes"] = our_kills(facts)
    facts["run"]["byte positions"] = sum(facts.get("byte positions tested", {}).values())
    failed += shortfalls(args, facts)
    facts["run"]["failed"] = failed or ["nothing"]
    report_facts.write(os.path.join(args.out, "report.json"), facts)
    table = "\n".join(report_facts.lines(facts))
    Path(args.out, "report.md").write_text(table + "\n")
    print(f"\n{table}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
