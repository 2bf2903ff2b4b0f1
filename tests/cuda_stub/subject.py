"""What is tested: the one file of these tests that knows where in fastcifar things are."""

from fastcifar import entry
from fastcifar import train as training
from fastcifar.augment import DeviceData, EpochPlan, Executor, TorchExecutor, draw_plan
from fastcifar.config import Config
from fastcifar.data import Dataset
from fastcifar.job import Job, can_be_recorded, network, prepare, start
from fastcifar.machine import choose as choose_machine
from fastcifar.optim import make_optimizers, set_row
from fastcifar.progress import Lines
from fastcifar.recipes import RECIPES, with_optimizer
from fastcifar.state import State
from fastcifar.step import GraphedStep, Step, autocast, make_step

__all__ = [
    "RECIPES", "Config", "Dataset", "DeviceData", "EpochPlan", "Executor", "GraphedStep", "Job", "Lines", "State",
    "Step", "TorchExecutor", "autocast", "can_be_recorded", "choose_machine", "draw_plan", "entry", "make_optimizers",
    "make_step", "network", "prepare", "set_row", "start", "training", "with_optimizer",
]  # fmt: skip
