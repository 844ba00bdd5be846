"""The actions of a schedule: drawn by a seed, replayed from their list, each harmless where it makes no sense.

An action is a list: a name and integers, which are taken modulo what there is. So any part of a list is a
schedule again, and a failing one can be made smaller.
"""

import contextlib
import itertools
import os
import random
import shutil
import sqlite3

import schedule_help
from model_journal import lines_hit
from model_process import HINTS
from model_receivers import FILE_MOODS, MOODS

from spoolagent.format.layout import list_segments, segment_name, stream_dir
from spoolagent.serving.database import MIRROR, NAME, commits, existing
from spoolagent.serving.dead_letters import Choice, mark

SITES, RUNS = ("site-a", "site-b"), ("run-1", "run-2")
DURABILITIES = ("process", "interval", "always")
ERRNOS = (5, 28, 5, 28, 13)
WEIGHTS = {
    "start": 6,
    "append": 26,
    "sync": 6,
    "tick": 4,
    "close": 4,
    "ship": 22,
    "work": 22,
    "stop": 2,
    "undertake": 3,
    "fault": 12,
    "resume": 5,
    "kill": 5,
    "power": 3,
    "full": 3,
    "flip": 3,
    "smash": 1,
    "cut": 1,
    "remove": 1,
    "rsync": 3,
    "move": 1,
    "backup": 1,
    "restore": 1,
    "copy": 1,
    "reship": 2,
    "prune": 3,
    "retry": 2,
    "snapshot": 2,
    "rewind": 2,
    "mood": 7,
    "clock": 5,
    "jump": 1,
}
PLAIN = ("start", "append", "sync", "tick", "close", "ship", "work")


def draw(rng, length):
    """A schedule of `length` actions. Some leave whole groups of faults out, so that the rest goes deeper."""
    names = [n for n in WEIGHTS if n in PLAIN or rng.random() < 0.6]
    weights = [WEIGHTS[name] for name in names]
    return [
        [name, *(rng.randrange(1 << 16) for _ in range(5))] for name in rng.choices(names, weights, k=length)
    ]


def draw_config(rng):
    """What the world of a schedule looks like."""
    pool = ["model", "home", "jsonl", "tb"]
    receivers = rng.sample(pool, rng.choice([1, 2, 2, 3]))
    return {
        "clients": rng.choice([1, 1, 2]),
        "receivers": sorted(receivers),
        "remote": rng.random() < 0.3,
        "batch": rng.choice([1, 3, 4, 20]),
        "seed": rng.randrange(1 << 30),
    }


def pick(items, number):
    """One of the items, None when there is none."""
    items = list(items)
    return items[number % len(items)] if items else None


def has_mirror(folder):
    """Whether the mirror with a target's files knows of as many commits as the database in `folder`."""
    if not os.path.islink(os.path.join(folder, MIRROR)):
        return False
    counts = []
    for name in (NAME, MIRROR):
        try:
            with contextlib.closing(existing(os.path.join(folder, name), "ro")) as db:
                counts.append(commits(db))
        except sqlite3.Error:
            return False
    return counts[0] == counts[1]


class Actions:
    """Carries actions out in a world."""

    def __init__(self, world):
        self.world = world

    def do(self, action):
        name, *numbers = action
        getattr(self, f"do_{name}")(*numbers)
        self.world.check_ends()

    # -- writers -----------------------------------------------------------------------------------------

    def _writers(self):
        return [p for p in self.world.writers if not p[0].dead and not p[1].closed and p[0].state == "idle"]

    def do_start(self, client, place, role, kind, size):
        if len(self._writers()) >= 4:
            return
        is_aux = role % 5 == 0
        self.world.start_writer(
            client % len(self.world.spools),
            SITES[place % 2 if len(self.world.spools) == 1 else client % 2],
            RUNS[(place >> 1) % 2],
            role="aux" if is_aux else "main",
            new_attempt=not is_aux and (role >> 4) % 3 == 0,
            durability=DURABILITIES[kind % 3],
            segment_bytes=(300, 700, 2000, 1 << 20)[size % 4],
        )

    def do_append(self, which, count, kind, *_):
        if not self._writers():
            self.do_start(which, count, 1, kind, which >> 3)
        place = pick(self._writers(), which)
        if place is not None:
            kinds = (0, 0, 0, 0, 1, 2, 3, 0)
            place[0].start(lambda: self.world.append(place, 1 + count % 8, kinds[kind % 8]))

    def do_sync(self, which, *_):
        place = pick(self._writers(), which)
        if place is not None:
            place[0].start(lambda: self.world.sync(place))

    def do_tick(self, which, *_):
        place = pick(self._writers(), which)
        if place is not None:
            place[0].start(place[1].tick)

    def do_close(self, which, status, *_):
        place = pick(self._writers(), which)
        if place is not None:
            said = ("finished", "finished", "failed", "")[status % 4]
            place[0].start(lambda: self.world.close_writer(place, said))

    # -- agents ------------------------------------------------------------------------------------------

    def do_ship(self, client, number, passes, hints, *_):
        client, number = client % len(self.world.spools), number % 8 // 7
        process = self.world.shipper_process(client, number)
        for _ in range(passes % 4):
            self.world.pass_of(process, self._hints(hints, self.world.spools[client]), 0.3)

    def do_work(self, which, number, passes, hints, *_):
        name = pick(self.world.config["receivers"], which)
        number = number % 8 // 7
        process = self.world.worker_process(name, number)
        for _ in range(passes % 4):
            self.world.pass_of(process, self._hints(hints, self.world.spool_of(name)), 0.3)

    def _hints(self, number, spool):
        kind = HINTS[number % len(HINTS)]
        if kind == "sweep":
            return None
        if kind == "lost":
            return set()
        return {key for key, _ in self.world.segments(spool)}

    def do_stop(self, which, *_):
        process = pick([*self.world.shippers.values(), *self.world.workers.values()], which)
        if process is not None and process.state != "idle":
            self.stop(process)

    def stop(self, process):
        """SIGTERM: it ends by itself, soon."""
        process.stopping = True
        for _ in range(50):
            if process.state == "idle":
                return
            self.world.pass_of(process)
        raise AssertionError(f"{process.name} does not stop")

    def do_undertake(self, client, *_):
        self.world.undertake(client % len(self.world.spools))

    # -- faults ------------------------------------------------------------------------------------------

    def _processes(self):
        return [p for p in self.world.processes() if not p.dead]

    def do_fault(self, which, countdown, kind, argument, written):
        process = pick(self._processes(), which)
        if process is None or len(process.plan) > 2:
            return
        name = ("pause", "crash", "error", "error")[kind % 4]
        value = written % 90 if kind & 16 else 0
        given = {"pause": None, "crash": value, "error": (ERRNOS[argument % len(ERRNOS)], value)}[name]
        process.plan.append([1 + countdown % 24, name, given])

    def do_resume(self, which, *_):
        process = pick([p for p in self._processes() if p.state == "paused"], which)
        if process is not None:
            process.resume()

    def do_kill(self, which, *_):
        process = pick(self._processes(), which)
        if process is not None:
            self.world.stats["kills"] += 1
            self.world.kill(process)

    def do_power(self, which, seed, *_):
        world = self.world
        if not world.config.get("forgets", True):
            return
        rng = random.Random(seed)
        world.stats["power"] += 1
        if which % 2:
            self._server_down()
            world.files.power_cut(world.server_root, rng)
            world.files.power_cut(world.out, rng)
            world.server_touched = True
            for record in world.records.values():
                if record.copied:  # its bad lines there are given up after a minute, healed or not
                    record.destroyed_there.update(record.acked, [1])  # 1: the run's start
            return
        client = (which >> 1) % len(world.spools)
        self._client_down(client)
        world.power_cuts += 1
        world.boots[f"c{client}"] = f"boot-{client}-{world.power_cuts}"
        world.files.power_cut(world.client_roots[client], rng)
        for record in world.records.values():
            if record.client == client:
                known = record.vanishing_from
                record.destroyed.update(record.unsure)
                record.vanishing_from = record.synced + 1 if known is None else min(known, record.synced + 1)

    def _client_down(self, client):
        world = self.world
        for place in world.writers:
            if place[2] == client and not place[0].dead:
                world.bury_writer(place)
        for (number, _), process in world.shippers.items():
            if number == client:
                process.kill()
        world.undertakers.pop(client, None)
        if client == 0:
            for (name, _), process in world.workers.items():
                if name == "home":
                    process.kill()

    def _server_down(self):
        for process in self.world.shippers.values():
            process.kill()
        for (name, _), process in self.world.workers.items():
            if name != "home":
                process.kill()

    def do_full(self, which, on, *_):
        root = pick(self.world.kernel.roots, which)
        if on % 2:
            self.world.kernel.full.add(root)
        else:
            self.world.kernel.full.clear()

    # -- damage ------------------------------------------------------------------------------------------

    def _file(self, where, which):
        spool = self.world.server if where % 3 else pick(self.world.spools, where)
        found = pick(self.world.segments(spool), which)
        return (None, None, None) if found is None else (spool, *found)

    def _destroy(self, spool, key, path, start, end):
        """Puts on record what a change of these bytes destroys."""
        record = self.world.records.get(key)
        with open(path, "rb") as file:
            hit = lines_hit(file.read(), start, end)
        self.world.damage += 1
        if record is None:
            return
        there = spool == self.world.server
        self.world.server_touched |= there
        (record.destroyed_there if there else record.destroyed).update(s for s in hit if s is not None)
        record.phantoms += sum(seq is None for seq in hit)

    def _overwrite(self, path, at, data):
        for content in (self.world.files.data.get(os.stat(path).st_ino),):
            if content is not None:
                new = content[:at] + data + content[at + len(data) :]
                self.world.files.data[os.stat(path).st_ino] = new[: max(len(content), 0)]
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def do_flip(self, where, which, at, bit, *_):
        spool, key, path = self._file(where, which)
        if path is None or not os.path.getsize(path):
            return
        at %= os.path.getsize(path)
        with open(path, "rb") as file:
            file.seek(at)
            byte = file.read(1)[0] ^ (1 << bit % 8)
        self._destroy(spool, key, path, at, at + 1)
        self._overwrite(path, at, bytes([byte]))

    def do_smash(self, where, which, at, length, seed):
        spool, key, path = self._file(where, which)
        if path is None or not os.path.getsize(path):
            return
        size = os.path.getsize(path)
        at %= size
        length = min(1 + length % 300, size - at)
        self._destroy(spool, key, path, at, at + length)
        junk = random.Random(seed).randbytes(length) if seed % 2 else bytes(length)
        with open(path, "rb") as file:
            held = file.read()[at : at + length]
        record = self.world.records.get(key)
        if record is not None:
            # More lines than there were: a reader that finds nothing behind them counts each.
            record.phantoms += max(0, junk.count(b"\n") - held.count(b"\n"))
        self._overwrite(path, at, junk)

    def do_cut(self, where, which, at, *_):
        spool, key, path = self._file(where, which)
        if path is None or not os.path.getsize(path):
            return
        at %= os.path.getsize(path)
        self._destroy(spool, key, path, at, 1 << 40)
        record = self.world.records.get(key)
        if record is not None and spool != self.world.server and not record.ended:
            record.tainted = True
        inode = os.stat(path).st_ino
        self.world.files.data[inode] = self.world.files.data.get(inode, b"")[:at]
        os.truncate(path, at)

    def do_remove(self, where, which, *__):
        """A segment is gone. At the server the source still has it: it is waited for, a day at most."""
        spool, key, path = self._file(where, which)
        found = path and (key, path)
        record = self.world.records.get(key)
        if found and spool != self.world.server and (record is None or not record.ended):
            return
        if found:
            self._destroy(spool, key, path, 0, 1 << 40)
            os.unlink(found[1])
            self.world.files._remember(os.path.dirname(found[1]))
            self.world.server_touched = True
            self.world.damage += 1

    # -- other transports, moves, backups ----------------------------------------------------------------

    def do_rsync(self, client, which, *_):
        """Somebody's own rsync: each file anew under another name, then renamed over the old one."""
        spool = pick(self.world.spools, client)
        found = pick(self.world.segments(spool), which)
        if found is None:
            return
        self.world.damage += 1  # what is not fsynced there may be gone after a power cut
        key = found[0]
        record = self.world.records.get(key)
        if record is not None:
            record.copied = True
        source, target = stream_dir(spool, key), stream_dir(self.world.server, key)
        os.makedirs(target, exist_ok=True)
        for first in list_segments(source):
            name = segment_name(first)
            new, old = os.path.join(source, name), os.path.join(target, name)
            if os.path.exists(old) and os.path.getsize(old) > os.path.getsize(new):
                continue
            shutil.copyfile(new, os.path.join(target, f".{name}.Xy12"))
            os.rename(os.path.join(target, f".{name}.Xy12"), old)
        self.world.server_touched = True

    def do_move(self, which, *_):
        world = self.world
        world.moves += 1
        if which % 2:
            self._server_down()
            new = os.path.join(world.server_root, f"spool-{world.moves}")
            os.rename(world.server, new)
            world.server = new
            world.files.sync_tree(world.server_root)
            return
        client = (which >> 1) % len(world.spools)
        self._client_down(client)
        new = os.path.join(world.client_roots[client], f"spool-{world.moves}")
        os.rename(world.spools[client], new)
        world.spools[client] = new
        world.files.sync_tree(world.client_roots[client])

    def do_backup(self, *_):
        world = self.world
        if world.backup is not None:
            shutil.rmtree(world.backup)
        world.backup = os.path.join(world.base, "backup")
        sites = os.path.join(world.server, "sites")
        os.makedirs(sites, exist_ok=True)
        shutil.copytree(sites, world.backup)

    def do_restore(self, *_):
        world = self.world
        if world.backup is None:
            return
        self._server_down()
        sites = os.path.join(world.server, "sites")
        shutil.rmtree(sites, ignore_errors=True)
        shutil.copytree(world.backup, sites)
        world.damage += 1
        world.files.sync_tree(world.server_root)
        world.server_touched = True
        for (
            record
        ) in world.records.values():  # nobody has them any more, if the backup is older than the prune
            record.destroyed_there.update(range(1, record.pruned + 1))

    def do_prune(self, client, which, most, *_):
        """Removes full segments at home that the server has on its disk and that no receiver at home still wants."""
        world = self.world
        spool = pick(world.spools, client)
        found = pick(world.segments(spool), which)
        if found is None or found[0] not in world.records:
            return
        key, record = found[0], world.records[found[0]]
        count, firsts = 0, list_segments(stream_dir(spool, key))
        for first, following in itertools.pairwise(firsts):
            wanted = "home" in world.cursors and record.client == 0
            if wanted and world.cursors["home"].get(key, 1) < following:
                break
            if not self._is_safe_there(spool, key, segment_name(first)):
                break
            count += 1
        if count:
            record.pruned = schedule_help.prune(stream_dir(spool, key), 1 + most % count)
            world.stats["pruned"] += 1

    def _is_safe_there(self, spool, key, name):
        source, target = stream_dir(spool, key), stream_dir(self.world.server, key)
        if not os.path.exists(os.path.join(target, name)):
            return False
        with open(os.path.join(source, name), "rb") as ours, open(os.path.join(target, name), "rb") as theirs:
            content = ours.read()
            return content == theirs.read() == self.world.files.durable(target, name)

    def do_copy(self, client, *_):
        """A copy of a client's spool, as on a disk that is carried."""
        world = self.world
        client %= len(world.spools)
        place = os.path.join(world.client_roots[client], "copy")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(world.spools[client], place, ignore=shutil.ignore_patterns("LIVE", ".*", "*.lock"))
        world.files.sync_tree(place)
        world.copies[client] = place

    def do_reship(self, client, *_):
        world = self.world
        client %= len(world.spools)
        if client in world.copies:
            world.ship_once(world.copies[client], world.agent_host(client))

    # -- receivers and clocks ----------------------------------------------------------------------------

    def do_mood(self, which, *numbers):
        name = pick(self.world.config["receivers"], which)
        known = FILE_MOODS if name in ("jsonl", "tb") else MOODS
        chosen = [known[number % len(known)] for number in numbers[: 1 + numbers[-1] % 4]]
        self.world.moods[name][:] = chosen

    def do_retry(self, mended, *_):
        """An operator mends the tracker, or not, and has the dead letters delivered again."""
        world = self.world
        if "model" not in world.config["receivers"]:
            return
        folder = world.folder("model")
        busy = [p for (name, _), p in world.workers.items() if name == "model" and p.state == "paused"]
        if "model" not in world.trackers or busy or not os.path.exists(os.path.join(folder, "state.sqlite")):
            return
        if mended % 2:
            world.trackers["model"].refuses = False
        world.stats["retried"] += mark(folder, Choice(states=("dead",)), "retry")

    def do_snapshot(self, which, *_):
        """A backup of one receiver's cursors."""
        name = pick(self.world.config["receivers"], which)
        if name is None or not os.path.isdir(self.world.folder(name)):
            return
        self._workers_die(name)
        kept = os.path.join(self.world.base, f"cursors-{name}")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.world.folder(name), kept)

    def do_rewind(self, which, *_):
        """The cursors are put back to the snapshot: what was delivered since is delivered again, to no effect."""
        world = self.world
        name = pick(world.config["receivers"], which)
        kept = os.path.join(world.base, f"cursors-{name}")
        if name is None or not os.path.isdir(kept):
            return
        self._workers_die(name)
        if name in ("jsonl", "tb") and not has_mirror(world.folder(name)):
            return  # the disk refused it a moment ago: docs/reliability.md, "not promised"
        shutil.rmtree(world.folder(name), ignore_errors=True)
        shutil.copytree(kept, world.folder(name))
        world.stats["rewinds"] += 1
        if name in ("jsonl", "tb"):  # the mirror beside their files has them all: nothing comes again
            return
        world.cursors[name].clear()
        world.in_flight.pop(name, None)
        world.rewound.add(name)

    def _workers_die(self, name):
        for (receiver, _), process in self.world.workers.items():
            if receiver == name:
                process.kill()

    def do_clock(self, seconds, *_):
        self.world.clock.advance((0.4, 2.0, 15.0, 70.0, 4000.0, 90_000.0)[seconds % 6])

    def do_jump(self, seconds, *_):
        """The wall clock is set back, the monotonic one goes on."""
        self.world.clock.wall -= (seconds % 500) * 1_000_000_000
