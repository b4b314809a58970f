"""The table of `influence-batch audit --profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from influence_batch.report import load_report


def print_profile(run_dir: str | Path) -> None:
    """Print what run.json has under `profile`."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    profile: dict[str, Any] = load_report(run_dir).run["profile"]
    rates = profile["rates"]
    table = Table(title="Where time and memory went", title_justify="left")
    table.add_column("stage", no_wrap=True, min_width=len("cross_influence"))
    for name in (
        "seconds",
        "peak memory",
        "passes",
        "flops float64",
        "flops float32",
        "GF/s",
        "share of rate",
    ):
        table.add_column(name, justify="right")
    for stage in profile["stages"]:
        share = stage["share_of_rate"]
        table.add_row(
            stage["name"],
            f"{stage['seconds']:.2f}",
            decimal(stage["peak_memory_bytes"]),
            f"{stage['passes']:.1f}",
            f"{stage['flops_float64']:.2g}",
            f"{stage['flops_float32']:.2g}",
            f"{stage['flops_per_second'] / 1e9:.1f}",
            "" if share is None else f"{share:.0%}",
        )
    Console().print(table)
    if rates is None:
        click.echo("rate of products: not measured, the work is done on other machines")
    else:
        click.echo(
            f"rate of products with {rates['threads']} threads: {rates['float64'] / 1e9:.0f} GF/s in "
            f"float64, {rates['float32'] / 1e9:.0f} in float32"
        )
    click.echo(f"counted: {profile['counted']}")
    click.echo(f"memory: of {profile['memory_of']}")
