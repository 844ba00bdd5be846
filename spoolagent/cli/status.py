"""`status`: how the spool and its receivers stand."""

import typer

app = typer.Typer()
