"""What must hold after a schedule: faults stop, everything drains by itself, and then each invariant is looked at."""

import glob
import json
import os
import struct

import orjson
from model_journal import seq_of
from model_process import Violation

from spoolagent.format.ends import read_pruned
from spoolagent.format.layout import AGENT_DIR, iter_streams, list_segments, segment_name, stream_dir
from spoolagent.serving.dead_letters import Choice, read_letters
from spoolagent.serving.patrol import SLOW_S

ROUNDS = 150
PATIENCE = (61.0, 61.0, 86_401.0, 86_401.0, 61.0)


def need(condition, text):
    """Raises Violation unless `condition`."""
    if not condition:
        raise Violation(text)


class Aftermath:
    """Drains a world and checks it."""

    def __init__(self, world, actions, rng):
        self.world, self.actions, self.rng = world, actions, rng

    def run(self):
        self._faults_stop()
        self._writers_end()
        down = self._isolation()
        self.drain(without=down)
        if down:
            for name in self.world.config["receivers"]:
                if name != down:
                    self.check_receiver(name)
            self.world.moods[down].clear()
            self.drain()
        for name in self.world.config["receivers"]:
            self.check_receiver(name)
        self._statuses()
        self._at_rest()
        self._fresh()
        self._confinement()

    # -- the end of all faults -----------------------------------------------------------------------------

    def _faults_stop(self):
        world = self.world
        world.kernel.full.clear()
        for process in world.processes():
            process.plan.clear()
        for moods in world.moods.values():
            moods.clear()
        for process in world.processes():
            for _ in range(20):
                if process.state != "paused":
                    break
                process.resume()
        world.check_ends()
        if world.server_touched:  # what another transport did to the target is seen by a new session
            for process in world.shippers.values():
                self.actions.stop(process)
        for (_, number), process in list(world.workers.items()):
            if number or self.rng.random() < 0.3:
                self.actions.stop(process)
        for (_, number), process in list(world.shippers.items()):
            if number:
                self.actions.stop(process)

    def _writers_end(self):
        world = self.world
        for place in world.writers:
            process, writer, _ = place
            if process.dead or writer.closed:
                continue
            world.clock.advance(2.0)
            dropped = writer.dropped
            process.start(lambda place=place: world.append(place, 1, 0))
            need(writer.dropped == dropped, f"liveness: {process.name} drops events after the last fault")
            chance = self.rng.random()
            if chance < 0.5:
                process.start(lambda place=place: world.close_writer(place, "finished"))
                self._gaps(place)
            elif chance < 0.75:
                world.bury_writer(place)
            else:
                process.start(lambda place=place: world.sync(place))
        world.check_ends()

    def _gaps(self, place):
        """A loss is on record: what a writer dropped is in its gap events."""
        _, writer, _ = place
        said = 0
        for record in self.world.records.values():
            if record.writer is writer and (record.destroyed or record.tainted):
                return
        pruned = [key for key in iter_streams(writer.spool) if read_pruned(stream_dir(writer.spool, key))]
        if any(self.world.records[key].writer is writer for key in pruned if key in self.world.records):
            return  # the gap was delivered, and is not here any more
        for key, path in self.world.segments(writer.spool):
            record = self.world.records.get(key)
            if record is not None and record.writer is writer:
                with open(path, "rb") as file:
                    whole, _, _ = file.read().rpartition(b"\n")  # behind it may be half a gap, at a full disk
                    for line in whole.splitlines():
                        if b'"type":"gap"' in line:
                            said += json.loads(line)["dropped"]
        need(said == writer.dropped, f"{writer.writer} dropped {writer.dropped} events, its gaps say {said}")

    def _isolation(self):
        names = self.world.config["receivers"]
        if len(names) < 2 or self.rng.random() < 0.7:
            return None
        down = self.rng.choice(names)
        self.world.moods[down][:] = ["always down"]
        return down

    # -- draining ------------------------------------------------------------------------------------------

    def _agents(self):
        world = self.world
        made = [world.shipper_process(client, 0) for client in range(len(world.spools))]
        return made + [world.worker_process(name) for name in world.config["receivers"]]

    def _signature(self):
        world = self.world
        sizes = [
            os.path.getsize(path)
            for spool in [*world.spools, world.server]
            for _, path in world.segments(spool)
        ]
        states = [dict(tracker.statuses) for tracker in world.trackers.values()]
        places = [
            {
                task.key: task._reader and task._reader.position
                for task in process.worker._pool.tasks()
                if not task.may_rest  # those come and go
            }
            for process in world.workers.values()
            if process.state == "waiting" and hasattr(process, "worker")
        ]
        return [dict(c) for c in world.cursors.values()], sizes, states, places

    def turn(self, times=2, seconds=0.6):
        """Every agent looks around."""
        for _ in range(times):
            for process in self._agents():
                is_worker = process in self.world.workers.values()
                hints = set() if is_worker and self.world.trusts_hints else None
                self.world.pass_of(process, hints, seconds)
                self.world.check_ends()

    def drain(self, without=None):
        """Until nothing changes any more, not even when all patience is over."""
        at, last = 0, None
        for _ in range(ROUNDS):
            self.turn()
            now = self._signature()
            if now == last:
                if at == len(PATIENCE):
                    return
                self.world.clock.advance(PATIENCE[at])
                at += 1
            else:
                at = 0
            last = now
        raise Violation(f"liveness: it does not come to rest ({without})")

    # -- invariants ----------------------------------------------------------------------------------------

    def check_receiver(self, name):
        world = self.world
        spool = world.spool_of(name)
        at_home = name == "home"
        dead, lost = world.stores[name]["dead"], world.stores[name]["lost"]
        applied = self.applied(name)
        for key in applied:
            need(key in world.records, f"no invention: {name} has a stream {key} that nobody wrote")
        for record in world.records.values():
            if at_home and record.client != 0:
                continue
            self._check_stream(name, record, applied.get(record.key), dead, lost, at_home)
        if os.path.isdir(spool):
            self._quarantine(spool, name)
        if name == "model":
            self._letters()

    def _letters(self):
        """Liveness: no dead letter is left that somebody wants delivered again."""
        folder = self.world.folder("model")
        if os.path.exists(os.path.join(folder, "state.sqlite")):
            left = list(read_letters(folder, Choice(states=("retry",))))
            need(not left, f"liveness: dead letters that are to be retried are not: {left}")

    def _check_stream(self, name, record, applied, dead, lost, at_home):
        key, where = record.key, f"{name} {record.key}"
        next_seq = self.world.cursors[name].get(key, 1)
        mine_dead, mine_lost = dead.get(key, set()), lost.get(key, set())
        for seq in sorted(mine_lost):
            fine = record.may_be_lost(seq, at_home=at_home) or record.phantoms
            # cursors put back to before what was delivered and pruned: nobody has those bytes any more
            fine = fine or (name in self.world.rewound and seq <= record.pruned)
            need(fine, f"conservation: {where} seq {seq} is lost, but nothing destroyed it")
        for seq in sorted(mine_dead):
            n = record.acked.get(seq)
            refused = n is not None and record.tried[n][1].get("metrics", {}).get("refuse")
            blob = n is not None and record.tried[n][0] == "text"
            need(
                refused or blob or n is None, f"conservation: {where} seq {seq} is dead, but was not refused"
            )
        if applied is not None:
            for seq in range(1, next_seq):
                count = (seq in applied) + (seq in mine_dead) + (seq in mine_lost)
                need(
                    count == 1 or (count == 2 and self.world.may_be_both(name, key, seq, applied, lost)),
                    f"conservation: {where} seq {seq} before the cursor {next_seq}: applied {seq in applied}, "
                    f"dead {seq in mine_dead}, lost {seq in mine_lost}",
                )
            self._no_invention(where, record, applied)
        for seq, n in sorted(record.acked.items()):
            if seq >= next_seq and not record.may_be_lost(seq, at_home=at_home):
                raise Violation(
                    f"conservation: {where} seq {seq} (n={n}) never arrived; the cursor is {next_seq}"
                )

    def _no_invention(self, where, record, applied):
        for seq, data in applied.items():
            if data is None or data["type"] in ("run_start", "run_end", "gap"):
                continue
            n = data["metrics"].get("n") if data["type"] == "metrics" else int(data["key"][1:])
            need(
                n in record.tried, f"no invention: {where} seq {seq} holds n={n}, which its writer never had"
            )
            kind, fields = record.tried[n]
            same = {k: data.get(k) for k in fields} == fields and data["type"] == kind
            need(same, f"no invention: {where} seq {seq}: {data} is not {fields}")
            if not record.tainted:
                need(
                    record.acked.get(seq, n) == n,
                    f"no invention: {where} seq {seq} was n={record.acked.get(seq)}",
                )
        ns = [d["metrics"]["n"] for d in applied.values() if d and d["type"] == "metrics"]
        need(len(ns) == len(set(ns)), f"effective once: {where} has an event twice")

    def applied(self, name):
        """What the tracker holds: key -> {seq: data}. TensorBoard has no seqs: its numbers are counted."""
        if name == "jsonl":
            return self._applied_jsonl()
        if name == "tb":
            self._check_tensorboard()
            return {}
        tracker = self.world.trackers.get(name)
        return {} if tracker is None else tracker.events

    def _applied_jsonl(self):
        found = {}
        paths = glob.glob(os.path.join(self.world.out, "jsonl", "events*"))
        for path in sorted(paths, key=lambda path: (len(path), path)):  # events.jsonl, events-2.jsonl, ...
            with open(path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
            for line in lines:
                try:
                    data = orjson.loads(line)
                except orjson.JSONDecodeError:
                    need(self.world.stats["power"], f"containment: jsonl has a bad line {line[:80]!r}")
                    continue
                if data.get("type") == "run_state":
                    continue
                key = (data.pop("site"), data.pop("run"), data.pop("writer"))
                held = found.setdefault(key, {})
                if (key, data["seq"]) not in self.world.excused["jsonl"]:
                    need(
                        data["seq"] not in held,
                        f"effective once: jsonl {key} seq {data['seq']} is there twice",
                    )
                    need(
                        not held or data["seq"] > max(held),
                        f"order: jsonl {key} seq {data['seq']} comes late",
                    )
                held[data["seq"]] = data
        return found

    def _check_tensorboard(self):
        counts = {}
        for path in glob.glob(os.path.join(self.world.out, "tb", "**", "*tfevents*"), recursive=True):
            for n in _numbers(path):
                counts[n] = counts.get(n, 0) + 1
        excused = {
            r.acked.get(seq)
            for r in self.world.records.values()
            for k, seq in self.world.excused["tb"]
            if k == r.key
        }
        twice = [n for n, count in counts.items() if count > 1 and n not in excused]
        need(not twice, f"effective once: tensorboard shows {twice} twice")
        dead, lost = self.world.stores["tb"]["dead"], self.world.stores["tb"]["lost"]
        for record in self.world.records.values():
            next_seq = self.world.cursors["tb"].get(record.key, 1)
            for seq, n in record.acked.items():
                gone = seq in dead.get(record.key, ()) or seq in lost.get(record.key, ())
                if n in excused:
                    continue
                if seq < next_seq and n and record.tried[n][0] == "metrics" and not record.tainted:
                    need(
                        (counts.get(n, 0) == 1) != gone,
                        f"conservation: tensorboard {record.key} seq {seq}, n={n}: {counts.get(n, 0)} times, dead or lost: {gone}",
                    )

    def _quarantine(self, spool, name):
        """Lost bytes that were read are kept aside."""
        for folder, _, files in os.walk(os.path.join(spool, AGENT_DIR, "quarantine")):
            for file in files:
                if not file.startswith("."):
                    size = os.path.getsize(os.path.join(folder, file))
                    need(size, f"containment: {name}: {folder}/{file} is empty")

    def _at_rest(self):
        """What a shipper says nothing more of is on the target's disk."""
        world = self.world
        for key, path in world.segments(world.server):
            with open(path, "rb") as file:
                content = file.read()
            durable = world.files.durable(os.path.dirname(path), os.path.basename(path))
            need(
                world.damage or content == durable,
                f"durability: {key} {os.path.basename(path)} is at rest at the target, which may forget it",
            )

    def _statuses(self):
        """A run that is over, without damage, has the state that its streams say."""
        world = self.world
        for name, tracker in world.trackers.items():
            runs = {}
            for record in world.records.values():
                if record.role == "main" and world.cursors[name].get(record.key, 1) > 1:
                    runs.setdefault(record.key[:2], []).append(record)
            for run, records in runs.items():
                everything = [r for r in world.records.values() if r.key[:2] == run]
                if any(r.destroyed or r.destroyed_there or r.tainted or r.vanishing_from for r in everything):
                    continue
                if any(
                    r.phantoms for r in everything
                ):  # a header or a seal was hit: whose stream it is, and its end
                    continue
                latest = [r for r in records if r.attempt == max(r.attempt for r in records)]
                if not all(r.ended for r in latest):
                    continue
                states = [self._said(r) for r in latest]
                worst = next(s for s in ("failed", "killed", "finished") if s in states)
                told = tracker.statuses.get(run)
                need(
                    told is not None and told.status == worst,
                    f"effective once: {name} shows run {run} as {told and told.status}, it is {worst}",
                )

    def _said(self, record):
        """What its `run_end` says. One that got into the file counts, though its writer died before it knew."""
        if record.status:
            return record.status
        folder = stream_dir(self.world.spools[record.client], record.key)
        for first in list_segments(folder):
            with open(os.path.join(folder, segment_name(first)), "rb") as file:
                for line in file:
                    if seq_of(line) is not None and (event := json.loads(line))["type"] == "run_end":
                        return event["status"]
        return "killed"

    def _fresh(self):
        """Liveness: a fresh event arrives, soon; where a lost hint is believed, with the next slow round."""
        world = self.world
        bound_s = SLOW_S + 15 if world.trusts_hints else 27
        places = []
        for client in range(len(world.spools)):
            place = (
                *world.start_writer(
                    client,
                    f"fresh-{client}",
                    "r",
                    role="main",
                    new_attempt=False,
                    durability="process",
                    segment_bytes=1 << 20,
                ),
                client,
            )
            place[0].start(lambda place=place: world.append(place, 2, 0))
            places.append(place)
        for name in world.config["receivers"]:
            began = world.clock.now
            wanted = [p for p in places if name != "home" or p[2] == 0]
            while True:
                late = [p for p in wanted if world.cursors[name].get(world.record(p[1], p[2]).key, 1) < 4]
                if not late or world.clock.now - began > bound_s:
                    break
                self.turn(1, 0.3)
            need(
                not late,
                f"liveness: a fresh event did not reach {name} within {world.clock.now - began:.0f} s",
            )
        for name in world.config["receivers"]:
            self.check_receiver(name)
        for place in places:
            world.bury_writer(place)

    def _confinement(self):
        decoy = os.path.join(self.world.base, "decoy")
        need(not os.listdir(decoy), f"confinement: {os.listdir(decoy)} in the decoy directory")
        for spool in [*self.world.spools, self.world.server]:
            for key in iter_streams(spool):
                need(".." not in key, f"confinement: {key}")


def _numbers(path):
    """The values of the tag "n" in an event file, up to where its records stop being whole."""
    from tensorboard.compat.proto.event_pb2 import Event

    with open(path, "rb") as file:
        data = file.read()
    at, found = 0, []
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data) or not length:
            break
        try:
            event = Event.FromString(data[at + 12 : at + 12 + length])
        except Exception:
            break
        found += [int(v.simple_value) for v in event.summary.value if v.tag == "n"]
        at += 16 + length
    return found
