"""What every training has in common: processes and devices, steps and their guards, looks, and going on after a stop.

The loop itself stands in each script and reads as on a single processor:

    training = Training(objective, plan, options, identity)
    for step in training:
        rows = batch at random, by training.rng                     # the same in every process
        loss = training.objective(rows[training.share(len(rows))])  # a process's own part
        training.descend(loss)
        if training.looks:
            training.judge(lambda: the error on the validation part)
    training.finish()                                               # the weights to keep are in the network

Everything random follows from the seed and the number of the step, so a run that goes on is the run that was never
stopped. Devices, processes and mixed precision are Accelerate's: the same script runs under `accelerate launch`.
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import accelerate
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from seqexport.archives import read_content
from seqexport.errors import FileError, SeqExportError
from seqexport.files import replace_file
from seqexport.networks import Network
from training.command import Options
from training.curves import Look, draw_curve
from training.optimisation import learning_rate_factor


@dataclass(frozen=True)
class Plan:
    """How far and how fast. learning_rate: the highest, after the warm-up. clip: of the gradient's norm. every: steps
    between two looks. patience: looks without a better one after which the training stops. metric: what a look finds,
    of which less is better unless `more_is_better`. keep: the weights of the best look, or those of the last step.
    enough: a figure with which the training may stop."""

    total: int
    learning_rate: float
    weight_decay: float
    clip: float
    every: int
    metric: str
    patience: int | None = None
    more_is_better: bool = False
    keep: Literal["best", "last"] = "best"
    enough: float | None = None


@dataclass
class _Progress:
    """Where a training stands, but for its tensors."""

    step: int = 0
    seconds: float = 0.0
    loading: float = 0.0  # of the seconds, those until the batch was there
    best: float = math.nan
    best_step: int = 0
    curve: list[Look] = field(default_factory=list)


class Training:
    """One training, from its first step or from where an interrupted one stopped, to the weights that are kept.

    objective: a module with the attribute `network`; called with a process's part of a batch it gives the loss, or a
    tuple that starts with it. All its weights are trained and kept. identity: what the weights follow from, besides
    the options; a stopped run is only gone on with by the same. rng: numpy's, new at every step. carried: what a
    script hands from step to step, tensors (…, B, …) with the batch second, kept with a stopped run. stopped_file:
    where it is kept.
    """

    def __init__(
        self, objective: nn.Module, plan: Plan, options: Options, identity: Mapping[str, Any], label: str
    ) -> None:
        torch.set_num_threads(options.threads)
        self._accelerator = accelerate.Accelerator(mixed_precision=options.precision)
        self.plan, self._options, self._label = plan, options, label
        self.network: Network = objective.network  # type: ignore[assignment]
        self._bare = objective
        optimizer = torch.optim.AdamW(objective.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
        self.objective, self._optimizer = self._accelerator.prepare(objective, optimizer)
        self.objective.register_forward_pre_hook(lambda *_: self._batch_is_there())
        self.carried: tuple[Tensor, ...] = ()
        self.rng = np.random.default_rng(options.seed)
        self._progress = _Progress()
        self._best_weights = self._weights()
        self._losses: list[float] = []
        self._stopped, self._part, self._began, self._loads = False, 1.0, 0.0, False
        settings = {"seed": options.seed, "steps": options.steps, "cell": options.cell, "precision": options.precision}
        settings |= {"threads": options.threads, "processes": self._accelerator.num_processes, **identity}
        self._identity: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        self.stopped_file = Path(f"{options.out}.stopped")
        if self.stopped_file.exists():
            self._go_on()

    @property
    def main(self) -> bool:
        """Whether this is the process that scores, prints and writes."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self._accelerator.device

    @property
    def looks(self) -> bool:
        """Whether a look at the validation part is due after this step."""
        step = self._progress.step
        return step % self.plan.every == 0 or step >= self.plan.total or self._stopped

    @property
    def metrics(self) -> dict[str, Any]:
        """What the checkpoint tells of the training: seconds, and of those the share until the batches were there, the
        kept weights' step, seed and number of parameters, the validation part's best figure, and the learning curve as
        [step, loss, figure] of each look."""
        progress = self._progress
        return {
            "validation": {self.plan.metric: progress.best},
            "seconds": round(progress.seconds, 1),
            "loading": round(progress.loading / max(progress.seconds, 1e-9), 4),
            "steps": progress.best_step,
            "seed": self._options.seed,
            "parameters": sum(tensor.numel() for tensor in self.network.state_dict().values()),
            "curve": [[look.step, *(float(f"{value:.6g}") for value in look[1:])] for look in progress.curve],
        }

    def __iter__(self) -> Iterator[int]:
        """The steps that are left, from 1; after the last of them, or too long without a better look, it ends."""
        progress = self._progress
        bar = tqdm(
            total=self.plan.total,
            initial=progress.step,
            desc=self._label,
            unit="step",
            mininterval=0.5,
            disable=not self.main,
        )
        before, since = progress.seconds, time.perf_counter()
        while progress.step < self.plan.total and not self._stopped:
            progress.step += 1
            self._draw_anew()
            self._began, self._loads = time.perf_counter(), True
            yield progress.step
            progress.seconds = before + time.perf_counter() - since
            bar.update()
            if progress.curve and progress.curve[-1].step == progress.step:
                look = progress.curve[-1]
                bar.set_postfix(loss=f"{look.loss:.3f}", validation=f"{look.found:.4g}", best=f"{progress.best:.4g}")
                self._save()
        bar.close()

    def share(self, rows: int) -> slice:
        """Which of a batch's rows are this process's. Fewer rows than processes are everybody's."""
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        own = slice(rank, rows, ranks) if rows >= ranks else slice(0, rows)
        self._part = len(range(rows)[own]) * ranks / rows if rows >= ranks else 1.0
        return own

    def descend(self, loss: Tensor) -> None:
        """One step down the loss, the mean over the rows of this process's share, by all processes together.

        Raises SeqExportError where it is not finite.
        """
        whole = float(self._accelerator.reduce(loss.detach() * self._part, "mean"))
        progress = self._progress
        if not math.isfinite(whole):
            raise SeqExportError(
                f"The loss is {whole} at step {progress.step}: try another seed, or lower the learning rate."
            )
        self._losses.append(whole)
        rate = self.plan.learning_rate * learning_rate_factor(progress.step - 1, self.plan.total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        self._accelerator.backward(loss * self._part)
        self._accelerator.clip_grad_norm_(self.objective.parameters(), self.plan.clip)
        self._optimizer.step()
        if self._options.minutes is not None:
            passed = progress.seconds + time.perf_counter() - self._began
            self._stopped = self._told_by_main(lambda: passed > 60 * self._options.minutes)  # type: ignore[operator]

    def judge(self, found: Callable[[], float]) -> None:
        """Look at the validation part, the network in evaluation mode, and keep the weights if none were better."""
        progress = self._progress
        self.network.eval()
        value = self._told_by_main(found)
        self.network.train()
        loss = float(np.mean(self._losses)) if self._losses else math.nan
        progress.curve.append(Look(progress.step, loss, value))
        self._losses = []
        better = value > progress.best if self.plan.more_is_better else value < progress.best
        better = better or self.plan.keep == "last"
        if better or (math.isnan(progress.best) and math.isfinite(value)):
            progress.best, progress.best_step, self._best_weights = value, progress.step, self._weights()
        self._stopped = self._stopped or self._is_over()

    def _is_over(self) -> bool:
        """Whether there was no better look for too long, or one that is good enough."""
        progress, plan = self._progress, self.plan
        sign = 1 if plan.more_is_better else -1
        if plan.enough is not None and sign * progress.best > sign * plan.enough:
            return True
        return plan.patience is not None and progress.step - progress.best_step >= plan.every * plan.patience

    def finish(self) -> None:
        """Put the kept weights into the network, in evaluation mode. Raises SeqExportError where no look was finite."""
        if not math.isfinite(self._progress.best):
            raise SeqExportError(
                f"The {self.plan.metric} on the validation part is not finite after {self._progress.step} steps: try "
                "another seed."
            )
        self._bare.load_state_dict(self._best_weights)
        self.network.eval()

    def close(self) -> None:
        """The checkpoint is written: draw the learning curve beside it, and forget how to go on."""
        out = self._options.out
        draw_curve(out.with_name(f"{out.stem}.curve.png"), self._progress.curve, self.plan.metric, self._label)
        self.stopped_file.unlink(missing_ok=True)

    def _draw_anew(self) -> None:
        """Both generators of random numbers, from the seed and the step; torch's, which dropout uses, by process."""
        options, step, rank = self._options, self._progress.step, self._accelerator.process_index
        self.rng = np.random.default_rng([options.seed, step])
        torch.manual_seed(int(np.random.SeedSequence([options.seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))

    def _batch_is_there(self) -> None:
        if self._loads:
            self._progress.loading += time.perf_counter() - self._began
            self._loads = False

    def _told_by_main(self, ask: Callable[[], Any]) -> Any:
        """What the main process finds, in every process."""
        told = [ask() if self.main else None]
        return broadcast_object_list(told)[0] if self._accelerator.num_processes > 1 else told[0]

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._bare.state_dict().items()}

    # Going on where a run was stopped

    def _save(self) -> None:
        """Write down where the training stands, in place of where it stood before."""
        own = [part.detach().transpose(0, 1).contiguous() for part in self.carried]
        carried = [self._accelerator.gather(part) for part in own]  # (B of all processes, …)
        if not self.main:
            return
        progress = self._progress
        content = {
            "identity": json.dumps(self._identity),
            "progress": {
                **{name: getattr(progress, name) for name in ("step", "seconds", "loading", "best", "best_step")},
                "curve": [[look.step, look.loss, look.found] for look in progress.curve],
            },
            "weights": self._weights(),
            "best_weights": self._best_weights,
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "carried": carried,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        replace_file(self.stopped_file, buffer.getvalue())

    def _go_on(self) -> None:
        """Take up the training that a file tells of. Raises FileError where it is another one's."""
        tree = read_content(self.stopped_file).tree
        try:
            known = json.loads(tree["identity"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(
                f"{self.stopped_file} does not tell of a stopped training: delete it, or give another --out."
            ) from error
        other = [name for name in {**known, **self._identity} if known.get(name) != self._identity.get(name)]
        if other:
            told = ", ".join(f"{name} {known.get(name)} and not {self._identity.get(name)}" for name in other)
            raise FileError(
                f"{self.stopped_file} is of a training that was stopped and had {told}: go on with those, or delete it."
            )
        progress = dict(tree["progress"])
        progress["curve"] = [Look(*look) for look in progress["curve"]]
        self._progress = _Progress(**progress)
        self._stopped = self._is_over()
        self._bare.load_state_dict(tree["weights"])
        self._best_weights = tree["best_weights"]
        self._optimizer.load_state_dict(tree["optimizer"])
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        own = [part.chunk(ranks)[rank].to(self.device) for part in tree["carried"]]
        self.carried = tuple(part.transpose(0, 1).contiguous() for part in own)
        if self.main:
            tqdm.write(f"Going on from step {self._progress.step} of {self.stopped_file}.")
