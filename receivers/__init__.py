"""One file per tracker, behind the contract in `spoolagent.contract`."""
