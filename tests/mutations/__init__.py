"""Deliberate breaks of the product, each of which a test must notice. `run.py` tries them all."""
