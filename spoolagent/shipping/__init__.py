"""Copying a spool to another spool, resumably."""
