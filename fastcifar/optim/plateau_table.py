"""The table of ReduceLROnPlateau, the one schedule that is not known before the training."""

from typing import Any

from torch import Tensor

from fastcifar.config.config import Config
from fastcifar.config.schedule import Span
from fastcifar.optim.schedule_table import ScheduleTable, throwaway_optimizer, write_tail


class PlateauTable(ScheduleTable):
    """ReduceLROnPlateau: rewrites the rows of the epochs to come when the accuracy of an epoch is known."""

    def __init__(self, table: Tensor, tail_step: int, config: Config, steps_per_epoch: int) -> None:
        super().__init__(table, tail_step)
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.optimizer = throwaway_optimizer(config)
        self.torch_scheduler = config.schedule.torch_scheduler(self.optimizer, Span(0, config.epochs))

    def end_epoch(self, next_step: int, accuracy: float) -> None:
        self.torch_scheduler.step(accuracy)
        if next_step < self.tail_step:
            self.table[next_step : self.tail_step, 0] = self.optimizer.param_groups[0]["lr"]
            write_tail(self.table, self.tail_step, self.config, self.steps_per_epoch)

    def state(self) -> dict[str, Any]:
        return {"table": self.table, "plateau": self.torch_scheduler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.torch_scheduler.load_state_dict(state["plateau"])
        self.optimizer.param_groups[0]["lr"] = state["plateau"]["_last_lr"][0]
