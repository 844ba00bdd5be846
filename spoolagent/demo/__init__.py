"""The whole thing on one machine, in one command."""
