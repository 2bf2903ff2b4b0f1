"""The layers of resnet9 as a value: channels and kernels, stage by stage.

`SHAPES` has those that `--scale` names. A network of your own is `Model(shape=Shape(...))` in Python and the same as
JSON in `--shape`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastcifar.config.validation import Part, Range, setting

MOST_CHANNELS = 2048
MOST_STEM_CHANNELS = 24
"""The stem has the principal directions of 2x2x3 patches, each with both signs."""
_CHANNELS = Range(f"from 1 to {MOST_CHANNELS}", lambda v: 1 <= v <= MOST_CHANNELS)
_THEN = Range("one or two of 1 and 3", lambda v: len(v) in (1, 2) and {*v} <= {1, 3})


@dataclass(frozen=True, kw_only=True)
class Stage(Part):
    """A convolution with a 2x2 max-pool behind it, then one or two convolutions of the pooled map."""

    width: int = setting(within=_CHANNELS)
    """Channels of the first convolution and of the last."""
    kernel: Literal[1, 2, 3] = 3
    """Kernel size of the convolution before the pool."""
    then: tuple[int, ...] = setting(
        (3,), Range("one or two of 1 and 3", lambda v: v and set(v) <= {1, 3} and len(v) < 3)
    )
    """Kernel sizes of the convolutions after the pool."""
    inner: int | None = setting(None, _CHANNELS)
    """Channels between the two convolutions after the pool; None: `width`."""
    residual: bool = False
    """Add the pooled map to what the convolutions after it give."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Channels of the stem, and the stages. Raises ValueError for sizes that make no network."""

    stem: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if type(self.stem) is not int or not 2 <= self.stem <= MOST_STEM_CHANNELS or self.stem % 2:
            raise ValueError(f"shape.stem is {self.stem!r}; it must be an even number from 2 to {MOST_STEM_CHANNELS}")
        stages_fit = isinstance(self.stages, tuple) and all(isinstance(stage, Stage) for stage in self.stages)
        if not stages_fit or not 1 <= len(self.stages) <= 3:
            raise ValueError("shape.stages must be a list of one to three stages")

    @classmethod
    def of(cls, value: Any) -> Shape:
        """The shape of nested dicts and lists, or of their JSON text. ValueError names what is wrong."""
        if isinstance(value, cls):
            return value
        try:
            plain = json.loads(value) if isinstance(value, str) else value
            stages = [{**stage, "then": tuple(stage.get("then", (3,)))} for stage in plain["stages"]]
            return cls(stem=plain["stem"], stages=tuple(Stage(**stage) for stage in stages))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as e:
            reason = " ".join(str(e).replace("Stage.__init__() ", "").split())[:150]
            raise ValueError(f"shape is no network ({reason}); an example: {SHAPES['full']}") from e

    def __str__(self) -> str:
        """JSON, without what is at its default."""
        default = asdict(Stage(width=1))
        stages = [{k: v for k, v in asdict(stage).items() if v != default[k] or k == "width"} for stage in self.stages]
        return json.dumps({"stem": self.stem, "stages": stages}, separators=(",", ":"))


def _shape(stem: int, *widths: int) -> Shape:
    """The stages that all named shapes have: the last one ends with a residual block of two convolutions."""
    plain = [Stage(width=width) for width in widths[:-1]]
    return Shape(stem=stem, stages=(*plain, Stage(width=widths[-1], then=(3, 3), residual=True)))


SHAPES = {"full": _shape(24, 64, 256, 256), "small": _shape(16, 16, 64, 64), "wide": _shape(24, 128, 416, 512)}
"""Shapes of resnet9 by `--scale`: 0.66 GFLOP an image, 0.05 to end in minutes on 2 CPU cores, or 2.0 for more accuracy
from each epoch. A residual block in every stage costs more than it gives (LOG.md)."""
