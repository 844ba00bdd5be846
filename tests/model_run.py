"""Runs schedules by seed or from their list, and makes failing ones smaller."""

import os
import random
import shutil
import tempfile
import traceback
from collections import Counter

from model_actions import Actions, draw, draw_config
from model_checks import Aftermath
from model_process import Violation, open_files
from model_world import World, patched

GROUP = 25
"""Schedules in one test."""
LENGTHS = (15, 30, 60, 120)
_SHM = "/dev/shm"
_total = Counter()


def scratch():
    """Where worlds live: a file system in memory that does not use an inode number twice."""
    return _SHM if os.access(_SHM, os.W_OK) else None


def schedule_of(seed):
    """(config, actions) that a seed stands for."""
    rng = random.Random(seed)
    config = draw_config(rng)
    return config, draw(rng, rng.choice(LENGTHS))


def play(config, actions):
    """Runs one schedule and all checks. Raises Violation (or whatever went wrong)."""
    base = tempfile.mkdtemp(prefix="spoolmodel-", dir=scratch())
    config = {"forgets": scratch() is not None, **config}
    before = open_files()
    try:
        with patched():
            world = World(base, config)
            with world.kernel:
                doing = Actions(world)
                try:
                    for action in actions:
                        doing.do(action)
                    Aftermath(world, doing, random.Random(config["seed"])).run()
                finally:
                    _end(world)
            _count(world, actions)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    after = open_files(before)
    if after > before:  # fewer: garbage of an earlier test went meanwhile
        raise Violation(f"bounds: {after - before} files were left open")


def _end(world):
    for place in world.writers:
        world.bury_writer(place)
    for process in world.processes():
        process.kill()


def _count(world, actions):
    stats = world.stats
    _total.update(
        {
            "schedules": 1,
            "actions": len(actions),
            "durable operations": world.kernel.operations,
            "commits": stats["commits"],
            "repeated deliveries": stats["repeats"],
            "kills": stats["kills"],
            "power cuts": stats["power"],
            "prunes": stats["pruned"],
            "dead letters retried": stats["retried"],
            "cursors put back": stats["rewinds"],
        }
    )
    _total.update({f"faults at {name}": count for name, count in world.kernel.seen.items()})


def counts():
    """What was done so far in this process."""
    return dict(_total)


def outcome(config, actions):
    """None when all is well, else the exception."""
    try:
        play(config, actions)
    except (Exception, Violation) as error:
        return error
    return None


def run_seed(seed):
    """The exception of the schedule of this seed, or None."""
    return outcome(*schedule_of(seed))


def _same(one, other):
    """The same kind of failure: by the words before the first colon."""
    return type(one) is type(other) and str(one).partition(":")[0] == str(other).partition(":")[0]


def shrink(config, actions, failed, tries=400):
    """A smaller schedule that fails in the same way."""
    for smaller in _simpler_configs(config):
        if tries > 0 and _same(outcome(smaller, actions) or 0, failed):
            config = smaller
    size = max(1, len(actions) // 2)
    while size and tries > 0:
        at, cut = 0, False
        while at < len(actions) and tries > 0:
            shorter = actions[:at] + actions[at + size :]
            tries -= 1
            found = outcome(config, shorter)
            if found is not None and _same(found, failed):
                actions, cut = shorter, True
            else:
                at += size
        if not cut or size > 1:
            size //= 2 if not cut or size > 1 else 1
    return config, actions


def _simpler_configs(config):
    for name in config["receivers"]:
        if len(config["receivers"]) > 1:
            yield {**config, "receivers": [name]}
    if config["clients"] > 1:
        yield {**config, "clients": 1}
    if config["remote"]:
        yield {**config, "remote": False}


def shrunk_text(seed, failed):
    """What to print of a failure."""
    config, actions = shrink(*schedule_of(seed), failed)
    found = outcome(config, actions)
    trace = "".join(traceback.format_exception(found)[-6:]) if found is not None else ""
    lines = "\n".join(f"    {action}," for action in actions)
    return f"seed {seed}: {failed}\n{trace}\nCONFIG = {config}\nACTIONS = [\n{lines}\n]"
