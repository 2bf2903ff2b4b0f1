"""What one call does with a run (`Command`). It stands beside the Config, and no file keeps or sets it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.config.validation import Need, Part, setting

ONE_SEED = Need("a single run (without --runs)", lambda config, _: config.run.runs == 1)


@dataclass(frozen=True, kw_only=True)
class Command(Part):
    """What one call does with a run."""

    decides_weights: ClassVar[bool] = False
    out: str | None = None
    """Run folder; default runs/<utc time>-<recipe>-s<seed>."""
    config: str | None = setting(None, in_python=False)
    """File whose values are the defaults of all flags: a run's config.json, or settings by flag as JSON or TOML."""
    resume: str | None = None
    """Run folder to continue, or auto for the newest unfinished one below runs/."""
    log: Literal["none", "tensorboard", "trackio", "wandb"] = setting("none", needs=ONE_SEED)
    """Program that shows the run while it trains: gets loss, accuracy, learning rate and momentum of each epoch."""
    profile: bool = setting(False, needs=ONE_SEED)
    """Record a few steps: trace.json.gz for chrome://tracing or ui.perfetto.dev, and the costliest operations."""
    plot_schedule: bool = setting(False, in_python=False)
    """Draw learning rate and momentum to schedule.png and stop."""
    dry_run: bool = setting(False, in_python=False)
    """Build everything, train nothing, print the plan."""
    json: bool = setting(False, in_python=False)
    """End with the result as one line of JSON on a terminal, too, where it is a table."""
    debug: bool = setting(False, in_python=False)
    """Show tracebacks."""
