"""Breaks of invariant 1: conservation."""

from mutations.mutation import Mutation

SERVING = "spoolagent/serving"
FORMAT = "spoolagent/format"
SHIPPING = "spoolagent/shipping"
READER = "spoolagent/format/reader.py"
DURABLE = "spoolagent/format/durable.py"
APPENDFILE = "receivers/appendfile.py"

MUTATIONS = (
    # -- 1. conservation ----------------------------------------------------------------------------------
    Mutation(
        1,
        "cursor-before-ack",
        "the worker commits the cursor before the receiver has acknowledged the batch",
        SERVING,
        "is_damaged = bool(held.lost or held.bad)\n",
        "is_damaged = bool(held.lost or held.bad)\n"
        "            self._delivery.pending.append(Commit(key=task.key, position=held.position, facts=task.facts))\n",
        ("test_worker.py::test_a_crash_around_any_batch[2-before]",),
    ),
    Mutation(
        1,
        "outage-is-success",
        "a batch counts as delivered though the tracker was away",
        SERVING,
        'self.away(f"{error}")\n',
        'self.away(f"{error}")\n            return True\n',
        ("test_worker.py::test_an_unreachable_tracker_loses_nothing_and_is_asked_again",),
    ),
    Mutation(
        1,
        "lost-not-recorded",
        "lost seqs are passed over and not put on record",
        SERVING,
        "for lost in change.lost:",
        "for lost in ():",
        ("test_worker.py::test_lost_seqs_and_bad_bytes_are_on_record",),
    ),
    Mutation(
        1,
        "dead-letter-not-kept",
        "a refused event is dropped instead of becoming a dead letter",
        SERVING,
        "for seq, kind, reason in change.dead:",
        "for seq, kind, reason in ():",
        ("test_worker.py::test_a_refused_event_becomes_a_dead_letter_and_the_rest_goes_on",),
    ),
    Mutation(
        1,
        "gap-not-written",
        "what a full disk refused is forgotten: no gap event",
        FORMAT,
        "self._write_gap(self._gap)",
        "self._gap = None",
        ("test_stream_writer.py::test_a_full_disk_drops_counts_and_leaves_a_gap",),
    ),
    Mutation(
        1,
        "always-without-fsync",
        'durability "always" returns before the fsync',
        FORMAT,
        "self._sync_line(segment)",
        "pass",
        ("test_stream_writer.py::test_always_syncs_before_it_returns_and_process_does_not",),
    ),
    Mutation(
        1,
        "delivered-before-fsync",
        "the reader hands out bytes of this machine's own writers before they are fsynced",
        READER,
        "self._sync(fd, path, size)",
        "pass",
        ("test_fsync_order.py::test_nothing_is_delivered_that_the_machine_could_still_forget",),
    ),
    Mutation(
        1,
        "shipped-before-fsync",
        "the shipper sends bytes that the machine could still forget",
        SHIPPING,
        "segment.sync()",
        "pass",
        ("test_shipping.py::test_a_stream_is_fsynced_before_it_leaves_and_after_it_arrived",),
    ),
    Mutation(
        1,
        "arrived-without-fsync",
        "the shipper counts as shipped what the target has not fsynced",
        SHIPPING,
        "self._copy.sync()",
        "pass",
        ("test_shipping.py::test_a_stream_is_fsynced_before_it_leaves_and_after_it_arrived",),
    ),
    Mutation(
        1,
        "blob-after-event",
        "the shipper sends a blob after the event that names it",
        SHIPPING,
        "            self._blobs.carry_named(self._key.site, data[:length])\n"
        "            self._append(segment.first_seq, offset, data[offset - begin : length])\n",
        "            self._append(segment.first_seq, offset, data[offset - begin : length])\n"
        "            self._blobs.carry_named(self._key.site, data[:length])\n",
        ("test_shipping.py::test_a_blob_leaves_before_the_event_that_names_it",),
    ),
    Mutation(
        1,
        "blob-without-fsync",
        "a file appears under its name before its bytes are on disk",
        DURABLE,
        "    fsync_fd(fd, temp)\n    if exclusive:",
        "    if exclusive:",
        ("test_fsync_order.py::test_a_published_file_is_whole_before_it_has_its_name",),
    ),
    Mutation(
        1,
        "rename-without-fsync",
        "the directory is not fsynced after a rename",
        DURABLE,
        '    os.rename(source, target)\n    fsync_dir(os.path.dirname(target) or ".")\n',
        "    os.rename(source, target)\n",
        ("test_fsync_order.py::test_a_published_file_is_whole_before_it_has_its_name",),
    ),
    Mutation(
        1,
        "end-without-fsync",
        "a dead writer's stream is ended before its bytes are on disk",
        FORMAT,
        "    durable.fsync_path(path)\n    durable.fsync_dir(stream)\n    if is_closed",
        "    if is_closed",
        ("test_fsync_order.py::test_a_dead_stream_is_on_disk_before_its_end_is",),
    ),
    Mutation(
        1,
        "sync-without-fsync",
        "the writer's sync leaves out what was appended last",
        FORMAT,
        "                    durable.fsync_fd(segment.fd, segment.path)\n"
        "                except OSError as error:\n"
        "                    segment.broken = True",
        "                    pass\n"
        "                except OSError as error:\n"
        "                    segment.broken = True",
        ("test_fsync_order.py::test_a_sync_makes_every_segment_and_its_name_durable",),
    ),
    Mutation(
        1,
        "full-segment-without-fsync",
        "the writer closes a full segment without an fsync",
        FORMAT,
        "                durable.fsync_fd(segment.fd, segment.path)\n"
        "            except OSError as error:\n"
        "                failed = error\n"
        "            finally:\n",
        "                pass\n"
        "            except OSError as error:\n"
        "                failed = error\n"
        "            finally:\n",
        ("test_fsync_order.py::test_a_sync_makes_every_segment_and_its_name_durable",),
    ),
    Mutation(
        1,
        "segment-name-without-fsync",
        "the writer does not make the name of its next segment durable",
        FORMAT,
        "        self._unnamed.add(self._dir)\n",
        "",
        ("test_fsync_order.py::test_a_sync_makes_every_segment_and_its_name_durable",),
    ),
    Mutation(
        1,
        "file-target-without-fsync",
        "a batch for a file counts as delivered before its bytes are on disk",
        APPENDFILE,
        "        fsync_fd(fd, plan.path)\n",
        "",
        ("test_appendfile.py::test_after_a_failed_fsync_the_bytes_are_written_again",),
    ),
)
