"""Breaks of the supervisor, the writers that mimic a library, shipping's care for its copies, and the cursors' checksums."""

from mutations.mutation import Mutation

SUPERVISOR = "spoolagent/serving/supervisor.py"
SUMS = "spoolagent/serving/sums.py"
DIRECTORY = "spoolagent/shipping/directory.py"
COMPARE = "spoolagent/shipping/compare.py"

MUTATIONS = (
    # -- the supervisor -----------------------------------------------------------------------------------
    Mutation(
        8,
        "worker-not-started-again",
        "a worker that was killed is not started again",
        SUPERVISOR,
        "        if now >= process.restart_at:\n",
        "        if now < 0:\n",
        ("test_supervisor.py::test_a_killed_worker_is_started_again_and_goes_on",),
    ),
    Mutation(
        8,
        "long-upload-never-ends",
        "a worker in a call that takes very long gets no more time after it was killed for it",
        SUPERVISOR,
        "base * float(2**self.stuck)",
        "base",
        ("test_stuck.py::test_a_call_may_take_twice_as_long_after_each_kill",),
    ),
    Mutation(
        3,
        "one-target-twice",
        "two receivers of one configuration may be the same target",
        SUPERVISOR,
        "        if identity in seen:\n",
        "        if not identity:\n",
        ("test_supervisor.py::test_one_target_under_two_names_is_refused",),
    ),
    Mutation(
        1,
        "early-end-is-success",
        "a replay whose worker was killed says that all is delivered",
        SUPERVISOR,
        'run the replay again, it goes on"\n        )\n        return 1\n',
        'run the replay again, it goes on"\n        )\n        return 0\n',
        ("test_supervisor.py::test_a_replay_whose_worker_is_killed_does_not_say_that_all_is_well",),
    ),
    Mutation(
        6,
        "replay-begins-though-one-is-away",
        "a replay delivers to some of its receivers before it knows that all can be reached",
        SUPERVISOR,
        "            _wait_ready(processes, stop)\n",
        "",
        ("test_supervisor.py::test_nothing_is_delivered_when_one_receiver_cannot_begin",),
    ),
    # -- the writers that mimic a library -------------------------------------------------------------------
    Mutation(
        2,
        "writer-narrows-doubles",
        "the TensorBoard writer keeps float32 of a double",
        "writers/tb_values.py",
        "    if isinstance(value, (int, float, str, bytes)):\n        return metric_value(float(value))\n",
        "    if isinstance(value, (int, float, str, bytes)):\n"
        "        return metric_value(__import__('numpy').float32(value).item())\n",
        ("test_writer_tensorboard.py::test_values_keep_their_exact_double",),
    ),
    Mutation(
        2,
        "half-a-batch-logged",
        "a batch that MLflow would refuse as a whole is logged in part",
        "writers/mlflow_runs.py",
        "        points = _checked(metrics)\n        texts = _checked_tags((tag.key, tag.value) for tag in tags)\n",
        "        texts = _checked_tags((tag.key, tag.value) for tag in tags)\n"
        "        self._set_tags(texts)\n"
        "        points = _checked(metrics)\n",
        ("test_writer_mlflow.py::test_a_batch_that_is_refused_logs_nothing",),
    ),
    Mutation(
        4,
        "media-after-their-row",
        "what is no number of a W&B row is written after the row was closed",
        "writers/wandb_run.py",
        "            for part in parts:\n                self._write_part(part, row, at_ns)\n            if metrics or close or not parts:\n",
        "            if metrics or close or not parts:\n",
        ("test_writer_wandb.py::test_media_go_before_the_numbers_of_their_row",),
    ),
    Mutation(
        3,
        "failed-script-looks-finished",
        "a script that an exception ended looks finished",
        "writers/process.py",
        "_Exit.code = 255 if issubclass(kind, KeyboardInterrupt) else 1",
        "_Exit.code = 0",
        ("test_writer_wandb.py::test_how_a_run_ends",),
    ),
    # -- shipping -----------------------------------------------------------------------------------------
    Mutation(
        1,
        "found-there-without-fsync",
        "what a killed shipper left at the target counts as shipped though the target may forget it",
        DIRECTORY,
        "        self._compared.add(first_seq)\n",
        "",
        ("test_fsync_order.py::test_what_a_killed_shipper_left_at_the_target_is_synced_before_it_counts",),
    ),
    Mutation(
        7,
        "damage-taken-for-a-fork",
        "a damaged line of the target's copy is taken for another stream",
        COMPARE,
        "elif is_line(mine) and is_line(other):",
        "elif is_line(mine):",
        ("test_shipping.py::test_damage_is_never_a_fork_and_healing_gives_back_the_source",),
    ),
    Mutation(
        7,
        "damage-shipped-over-what-is-whole",
        "the target's whole line is replaced by the source's damaged one",
        COMPARE,
        "        elif is_line(other):\n            source_is_damaged = True\n",
        "        elif not is_line(mine) and is_line(other):\n            damaged_at = offset\n",
        ("test_shipping.py::test_damage_at_the_source_after_it_was_shipped_makes_no_fork",),
    ),
    Mutation(
        10,
        "another-spool-written-to",
        "the shipper goes on though another spool lies at the target now",
        DIRECTORY,
        "if found != self._uuid:",
        "if not found:",
        ("test_shipping.py::test_a_target_that_is_away_is_unreachable_and_nothing_is_made_there",),
    ),
    # -- the cursors' checksums ---------------------------------------------------------------------------
    Mutation(
        5,
        "cursor-checksum-ignored",
        "a cursor that a flipped bit has changed is believed",
        SUMS,
        "if sums.get(table) != _count(db, table):",
        "if sums.get(table) is None:",
        (
            "test_every_byte.py::test_every_table_is_watched_and_every_change_counted",
            "test_every_byte.py::test_a_log_that_lost_its_end_after_it_was_copied_into_the_database",
        ),
    ),
    Mutation(
        5,
        "checksum-without-types",
        "a cursor whose bytes moved from one column to the next has the same checksum",
        SUMS,
        """        crc = zlib.crc32(raw, zlib.crc32(f"{type(value).__name__}{len(raw)}:".encode(), crc))\n""",
        "        crc = zlib.crc32(raw, crc)\n",
        ("test_supervisor.py::test_the_checksum_of_a_row_knows_its_columns",),
    ),
    Mutation(
        5,
        "replaced-rows-not-counted",
        "a row that is replaced stays in the checksum, so a sound database looks damaged",
        SUMS,
        "PRAGMA recursive_triggers=ON",
        "PRAGMA recursive_triggers=OFF",
        ("test_every_byte.py::test_every_table_is_watched_and_every_change_counted",),
    ),
)
