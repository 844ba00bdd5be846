"""One file per logging API that is mimicked, over one `Run` (see `spoolagent.writers.run`)."""
