"""The example configuration that `config init` writes. examples/spoolagent.toml is the same text (a test compares)."""

EXAMPLE = """\
# Settings of the spoolagent agent. Every key is optional; what is commented out shows the default or an example.
# Environment variables (SPOOLAGENT_SPOOL, ...) go over this file, flags go over both.
# Check it with: spoolagent config check --config spoolagent.toml

# The spool that the agent works on. Use an absolute path: a relative one depends on where the agent starts.
spool = "/var/lib/spoolagent/spool"

[agent]
# Durations are seconds, or texts such as "500ms", "30s", "10m", "12h", "1d".

# How often every stream is looked at. File-system events only make it sooner.
sweep_interval = "1s"

# When a writer on another machine counts as dead: its LIVE file, renewed every 10 s, has not changed for so long.
stale_after = "60s"

# When a run that another spool sent is shown as killed because nothing more came. News takes it back.
presume_dead_after = "1d"

# How long a damaged line is read again (network file systems show holes) before its events count as lost.
patience = "60s"

# When a worker without progress, though there is work (a call into a tracker that hangs), is ended and started again.
stuck_after = "5m"

# true: never use file-system events. "auto": poll where the spool lies on a network file system.
poll = "auto"

[ship]
# Where `spoolagent ship` copies the spool to: the spool directory of the server.
to = "/mnt/server/spool"

[serve]
# What `spoolagent serve` delivers to: names of receivers below, or kind:target.
to = ["tb", "mlflow"]

# A receiver: [receivers.NAME] with `to`. These three are understood by every receiver:
#   max_events      the most events in one batch (default 1000)
#   max_bytes       the most bytes in one batch (default 1048576)
#   flush_interval  the longest that an event waits for others to share its batch (default "1s"; 0: not at all)
# Any other key is the receiver's own option.

[receivers.tb]
to = "tensorboard:/srv/tensorboard"
flush_interval = "500ms"
# The directory of a run below /srv/tensorboard.
directory = "{site}/{run}"

[receivers.mlflow]
# Never put a password here: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD belong in the service's environment.
to = "mlflow:http://localhost:5000"
max_events = 1000

[receivers.archive]
to = "jsonl:/srv/archive/events.jsonl"
flush_interval = "10s"
"""
