"""Predicted time of the kernels of an evaluation: PYTHONPATH=. .venv/bin/python PATH/predict_evaluation.py"""

from dataclasses import replace

import torch

from bench.operators import Op, trace
from bench.predict import CARDS, _half, seconds_of
from fastcifar.models.networks import make_model
from fastcifar.recipes import find_recipe

EFFICIENCY = 0.47
"""Of products, as records/2026-11-25_predict fits it."""


def main() -> None:
    config = find_recipe("speedrun94")
    half = _half(make_model(replace(config.model, scale="full"), 10, 0).to("meta"))
    batch, unsure = (trace(half, half, images, 32, 10, torch.bfloat16, None) for images in (1000, 250))
    for card in ("a100", "h100"):

        def ms(ops: list[Op], card: str = card) -> float:
            return 1e3 * sum(seconds_of(op, CARDS[card], False, EFFICIENCY) for op in ops)

        print(f"{card}: epoch {10 * ms(batch):.0f} ms, final {10 * (ms(batch) + 5 * ms(unsure)):.0f} ms")


if __name__ == "__main__":
    main()
