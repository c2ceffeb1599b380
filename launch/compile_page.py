"""What `launch.compile` prints of a report, and whether its file can be written."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bacl_jax.config import Config, ConfigError
from bacl_jax.train.ahead import Report

MIB = 2**20
SHOWN = 12  # collectives of the largest traffic


def show(config: Config, report: Report, took: float) -> None:
    """Memory by kind, work, traffic and estimated time of a step, of one chip."""
    console, hbm = Console(), report["hbm_bytes"]
    table = Table("a chip", title=f"{report['topology']}, batch {config.train.batch_size:,} in {config.train.micro_batches} micro-batches")
    table.add_column("", justify="right")
    for kind, size in hbm.items():
        table.add_row({"limit": "memory of a chip", "total": "memory needed"}.get(kind, f"  {kind}"), f"{size / MIB:,.0f} MiB")
    table.add_row("contrastive term alone, temporary", f"{report['loss_temp_bytes'] / MIB:,.0f} MiB")
    table.add_row("FLOPs of a step", f"{report['flops']:.3e}")
    if report["step_seconds"] is not None:
        table.add_row("estimated step (roofline)", f"{1e3 * report['step_seconds']:,.1f} ms")
        table.add_row("collectives", f"{sum(one['bytes'] * one['count'] for one in report['collectives']) / MIB:,.0f} MiB")
    for one in report["collectives"][:SHOWN]:
        table.add_row(f"  {one['kind']}, {one['count']:,} times", f"{one['bytes'] / MIB:,.2f} MiB")
    console.print(table)
    verdict = "fits" if report["fits"] else "does not fit"
    print(f"{verdict}: {hbm['total'] / 1e9:.2f} of {hbm['limit'] / 1e9:.0f} GB a chip; compiled in {took:.0f} s", flush=True)


def check_writable(path: Path) -> None:
    """ConfigError where the report could not be written after the minutes of a compile. Leaves what is there as it is."""
    there = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(
            f"--out={path} cannot be written: {error.strerror}; it must be a file in a folder that exists, take another"
        ) from None
    if not there:
        path.unlink()
