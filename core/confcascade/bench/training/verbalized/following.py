"""What happens beside a trainer's updates: a log, checkpoints, validation, the choice of weights, and an early end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confcascade.bench.training.verbalized.figures import ConfidenceFigures
from confcascade.bench.training.verbalized.guards import CollapseGuard
from confcascade.errors import require

__all__ = ["Following", "read_log"]

_PARTS = ("loss", "reward", "rewards/", "stated/", "kl", "entropy", "completions/mean_length", "learning_rate")


@dataclass
class Following:
    """Follows one run of one of TRL's trainers.

    Attributes:
        log: A file of JSON lines: each step's figures, and those of each validation.
        on_cpu: Whether the trainer runs there.
        every: Steps between validations, and between checkpoints.
        validate: Figures of the weights as they are, and what keeps them; None for neither.
        keep: Saves the weights as they are: called where a validation earns more than all before.
        guard: Ends a run that has gone wrong.
        progress: Called with the steps done and of all.
        stop: Once set, ends behind the step under way, which can be gone on from.
        problem: Why the guard ended it.
        stopped: Whether `stop` ended it.
    """

    log: Path
    on_cpu: bool
    every: int = 50
    validate: Callable[[int], ConfidenceFigures] | None = None
    keep: Callable[[], None] | None = None
    guard: CollapseGuard | None = None
    progress: Callable[[int, int], None] | None = None
    stop: threading.Event | None = None
    problem: str = ""
    stopped: bool = False
    _best: float = field(default=float("-inf"), init=False)

    def arguments(self, seed: int) -> dict[str, Any]:
        """For the trainer's configuration."""
        return {
            "seed": seed,
            "use_cpu": self.on_cpu,
            "bf16": False,  # weights stay as they were loaded
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_steps": 1,
            "save_strategy": "no",  # the callback says when
            "save_total_limit": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def train(self, trainer: Any, folder: Path) -> bool:
        """Run it, from its last checkpoint if there is one; False if `stop` ended it."""
        trainer_utils = require("transformers.trainer_utils", "train")
        callbacks = require("transformers.trainer_callback", "train")
        trainer.remove_callback(callbacks.PrinterCallback)
        checkpoints = folder / "checkpoints"
        last = trainer_utils.get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
        self._begin(0 if last is None else int(last.rpartition("-")[2]))
        trainer.train(resume_from_checkpoint=last)
        return not self.stopped

    def callback(self) -> Any:
        """For the trainer's `callbacks`."""
        callbacks = require("transformers.trainer_callback", "train")
        following = self

        class Follow(callbacks.TrainerCallback):  # type: ignore[name-defined, misc]
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                del args
                told = {name: value for name, value in (logs or {}).items() if name.startswith(_PARTS)}
                if told:
                    following._write({"step": state.global_step, **told})
                if following.guard is not None and (problem := following.guard.problem(told)):
                    following.problem = f"at step {state.global_step}, {problem}"
                    control.should_training_stop = True

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                del args
                done, of = state.global_step, state.max_steps
                if following.progress is not None:
                    following.progress(done, of)
                if following.stop is not None and following.stop.is_set() and done < of:
                    following.stopped = control.should_save = control.should_training_stop = True
                elif done % following.every == 0 or done == of:
                    following._validate(done, model)
                    control.should_save = True

        return Follow()

    def _begin(self, step: int) -> None:
        """Forget what was logged behind the checkpoint that a run goes on from."""
        kept = [told for told in read_log(self.log) if told["step"] <= step]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("".join(json.dumps(told) + "\n" for told in kept), encoding="utf-8")
        earned = [told["validation"]["earned"] for told in kept if "validation" in told]
        self._best = max(earned, default=float("-inf"))

    def _validate(self, step: int, model: Any) -> None:
        if self.validate is None:
            return
        model.eval()
        figures = self.validate(step)
        model.train()
        if figures.earned > self._best:
            self._best = figures.earned
            if self.keep is not None:
                self.keep()
        told = {name: value for name, value in asdict(figures).items() if name not in ("health", "bins")}
        self._write({"step": step, "validation": {**told, "earned": figures.earned}})

    def _write(self, told: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Its lines, but for one that a kill has cut."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
