"""What is tested: the one file of these tests that knows where in fastcifar things are."""

from fastcifar.augment import stem
from fastcifar.augment.executor import Block, Blocks, Draws, Executor, TorchExecutor
from fastcifar.augment.plan import EpochPlan
from fastcifar.cli import main as command_line
from fastcifar.cli.terminal import route_log_to
from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.config.recipes import RECIPES
from fastcifar.config.settings import with_optimizer, with_settings
from fastcifar.data.dataset import Dataset
from fastcifar.models import conv_choice, fused
from fastcifar.observers.checkpoints import Checkpoints, Interrupted
from fastcifar.observers.progress import Lines
from fastcifar.optim import fused_update
from fastcifar.optim.averaging import RunningMean
from fastcifar.optim.optimizers import make_optimizers, set_row
from fastcifar.runs import plots
from fastcifar.training import prepare as preparing
from fastcifar.training.evaluate import Evaluator
from fastcifar.training.fixed_parts import step_forms
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer
from fastcifar.training.prepare import warm_up
from fastcifar.training.refresh import Refresh
from fastcifar.training.start import initial_state
from fastcifar.training.state import State
from fastcifar.training.step import CapturedStep, CudaGraphs, Step, autocast, make_step
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task, make_task

__all__ = [
    "RECIPES",
    "Block",
    "Blocks",
    "CapturedStep",
    "Checkpoints",
    "Command",
    "Config",
    "CudaGraphs",
    "Dataset",
    "Draws",
    "EpochPlan",
    "Evaluator",
    "Executor",
    "Interrupted",
    "Lines",
    "Observer",
    "Refresh",
    "RunningMean",
    "State",
    "Step",
    "Task",
    "TorchExecutor",
    "autocast",
    "command_line",
    "conv_choice",
    "fused",
    "fused_update",
    "make_optimizers",
    "make_step",
    "make_task",
    "plots",
    "preparing",
    "resolve",
    "route_log_to",
    "set_row",
    "start_state",
    "stem",
    "step_forms",
    "train",
    "warm_up",
    "with_optimizer",
    "with_settings",
]  # fmt: skip


def start_state(task: Task) -> State:
    """The state before the first step of a run of its own."""
    return initial_state(task, Stopwatch(task.hardware.device))
