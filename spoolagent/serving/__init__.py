"""Watching a spool and replaying it to receivers, each event taking effect once."""
