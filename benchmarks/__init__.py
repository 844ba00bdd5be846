"""What logging, reading and delivering cost, beside the peers and the bare limit: `python -m benchmarks`."""
