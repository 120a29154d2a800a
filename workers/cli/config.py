"""`config`: every setting as it is in force, secrets left out, with its source."""

import os
from pathlib import Path

import click

from workers.cli.output import output_option, show_json, show_table
from workers.settings import effective, load


@click.command()
@output_option("table", "json")
def config(output: str) -> None:
    """Show every setting as it is in force, and who set it.

    Passwords are not shown. Also a check: settings that contradict each other are refused, each with its reason.
    """
    settings = effective(load(os.environ, Path.cwd()))
    if output == "json":
        show_json({"settings": [{"key": s.key, "value": s.value_text, "source": s.source} for s in settings]})
        return
    show_table(("SETTING", "VALUE", "FROM"), [(s.key, s.value_text, s.source) for s in settings])
