"""The training loop: steps, metrics, evaluations, checkpoints, and an orderly end."""

from __future__ import annotations

import errno
import math
import shlex
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import jax
from rich.console import Console

from parity.conversion.checkpoints import write_checkpoint
from parity.conversion.convert import to_torch
from parity.errors import ParityError
from resnet_flax.data import Source, open_source, steps_per_epoch
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.training.checkpoints import Checkpoints
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.devices import describe, memory_in_use, open_devices
from resnet_flax.training.display import Display, counted, duration, invocation
from resnet_flax.training.feature_cache import cache_features
from resnet_flax.training.interruption import Interruption
from resnet_flax.training.memory import is_out_of_memory, out_of_memory
from resnet_flax.training.metrics import Backlog, Journal, read_metrics
from resnet_flax.training.plots import plot_curves
from resnet_flax.training.recipes import scaling_note
from resnet_flax.training.setup import Setup, facts_of, resolve
from resnet_flax.training.state import TrainState, model_arrays
from resnet_flax.training.workdir import check_same_data, check_same_run, choose_workdir, locked, save_config
from resnet_flax.weights.metadata import metadata_of

PROFILED = (11, 21)  # the first of this run's steps in the trace, and the first behind it
PLOT_SECONDS = 60.0  # at most one plot so often while the run goes on


@dataclass
class Progress:
    """What a checkpoint holds beside the state, so that a resumed run's records go on as well.

    Attributes:
        best: the best accuracy so far, of the model and of its moving average.
        loss, accuracy, steps: sums over the current epoch.
        seconds: since the run began, what was lost apart.
    """

    best: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    accuracy: float = 0.0
    steps: int = 0
    seconds: float = 0.0

    @property
    def train(self) -> dict[str, float]:
        """Means over the current epoch, NaN where every update of it was skipped."""
        loss, accuracy = (x / self.steps if self.steps else math.nan for x in (self.loss, self.accuracy))
        return {"train_loss": loss, "train_accuracy": accuracy}


class Run:
    """One run in its workdir, new or resumed."""

    def __init__(self, setup: Setup, source: Source, test: Source, console: Console):
        self.setup, self.source, self.test, self.console = setup, source, test, console
        self.config = setup.config.run
        assert self.config.workdir is not None
        self.workdir: Path = self.config.workdir
        self.first = jax.process_index() == 0
        self.progress = Progress()
        self.backlog = Backlog()
        self._interval: list[dict[str, float]] = []
        self._stepped = False
        self._plotted = time.monotonic()

    def execute(self) -> int:
        """Trains to the end or until stopped; returns the exit status."""
        setup = self.setup
        # Most of what may be wrong with the settings shows here, before anything is written.
        state = setup.state(setup.initial_arrays())
        is_new = not self.workdir.exists()
        if self.first and not self.config.resume:
            save_config(setup.config, self.source)
        with locked(self.workdir) if self.first else nullcontext():
            try:
                return self._execute(state)
            finally:
                if self.first and not self.config.resume and not self._stepped:  # nothing to go on with: leave it free
                    (self.workdir / "config.json").unlink(missing_ok=True)
                    if is_new:
                        shutil.rmtree(self.workdir, ignore_errors=True)

    def _execute(self, state: TrainState) -> int:
        setup = self.setup
        self.checkpoints = Checkpoints(self.workdir / "checkpoints", self.config.keep)
        if self.config.resume and (restored := self.checkpoints.restore(state)):
            state, kept = restored
            kept.pop("fingerprint")
            self.progress = Progress(**kept)
        start = int(state["step"])
        self._began = time.monotonic() - self.progress.seconds
        self.journal = Journal(self.workdir, start) if self.first else None
        self.display = Display(self.console, total=setup.total_steps, done=start, batch_size=setup.config.batch_size)
        self.display.say(self._headline(start))
        if self.config.resume and not start:
            self.display.say("no checkpoint yet: this run begins with its first step")
        if note := scaling_note(setup.config):
            self.display.say(note)
        try:
            with Interruption(self.display.say) as interruption:
                state = self._steps(state, start, interruption)
                if int(state["step"]) < setup.total_steps:
                    return self._interrupted(state, interruption)
            self._finish(state)
        except (OSError, ParityError) as error:  # the second is of the weights' file, and says what of it
            if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"{self.workdir}: {error.strerror}" if isinstance(error, OSError) else str(error)
            last = self.checkpoints.last_whole()
            intact = "there is no checkpoint yet" if last is None else f"the checkpoint of step {last} is intact"
            raise UserError(f"{what}; {intact}; mend that and go on with --resume") from error
        finally:
            self.display.stop()
            if self.journal:
                self.journal.close()
        self.checkpoints.close()
        return 0

    def _headline(self, start: int) -> str:
        setup, facts = self.setup, self.setup.facts
        resumed = f", resumed behind step {start:,}" if start else ""
        steps = f"{counted(setup.config.schedule.epochs, 'epoch')} of {counted(setup.steps_per_epoch, 'step')}"
        data = f"{facts.images:,} images and {len(self.test):,} to test, {facts.num_classes} classes"
        return (
            f"{setup.config.recipe}: {setup.config.model.name} on {setup.config.data.data} ({data}), {steps}, "
            f"batch {setup.config.batch_size:,}, {describe(setup.mesh)}{resumed}"
        )

    def _steps(self, state: TrainState, start: int, interruption: Interruption) -> TrainState:
        setup, per_epoch = self.setup, self.setup.steps_per_epoch
        every = self.config.checkpoint_every or per_epoch
        batches = setup.training_batches(self.source, start)
        for step in range(start + 1, setup.total_steps + 1):
            batch = next(batches)
            self._profile(step - start)
            try:
                if step == start + 1:
                    state, metrics = self._first_step(state, batch)
                else:
                    state, metrics = setup.train_step(state, batch)
                self.backlog.push(step, metrics)
                for done in self.backlog.ready():
                    self._record(*done)
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory(setup, state, batch) from error
            stop = interruption.requested(step)
            if step % per_epoch and step % every and not stop:
                continue
            for done in self.backlog.all():
                self._record(*done)
            with self.display.pause():
                if step % per_epoch == 0:
                    self._evaluate(state, step)
                if step % per_epoch == 0 or step % every == 0 or stop:
                    self._save(state)
            if stop:
                break
        return state

    def _first_step(self, state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        self.display.say(f"compiling the training step on inputs of {'x'.join(map(str, batch['image'].shape[1:]))} ...")
        began = time.monotonic()
        try:
            state, metrics = self.setup.train_step(state, batch)
        except ValueError as error:  # of tracing, such as a norm of a single value
            raise UserError(f"a step on images of {batch['image'].shape} is not possible: {error}") from error
        self._stepped = True
        self.display.say(f"compiled in {duration(time.monotonic() - began)}")
        self.display.start()
        return state, metrics

    def _profile(self, step: int) -> None:
        """Traces ten steps of this process once the pipeline is full, if asked to."""
        if not self.config.profile or not self.first:
            return
        if step == PROFILED[0]:
            jax.profiler.start_trace(self.workdir / "profile")
        elif step == PROFILED[1]:
            for done in self.backlog.all():
                self._record(*done)
            jax.profiler.stop_trace()
            self.display.say(
                f"trace of ten steps written; look at it with\n  xprof --logdir {self.workdir / 'profile'}"
            )

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        """Takes in the metrics of one step, in order."""
        if not metrics["finite"] and self.config.on_nan == "stop":
            raise self._not_finite(step, metrics)
        progress, per_epoch = self.progress, self.setup.steps_per_epoch
        if metrics["finite"]:
            self._interval.append(metrics)
            progress.loss += metrics["loss"]
            progress.accuracy += metrics["accuracy"]
            progress.steps += 1
        self.display.step(
            step,
            epoch=f"{-(-step // per_epoch)}/{self.setup.config.schedule.epochs}",
            loss=progress.train["train_loss"],
            accuracy=progress.train["train_accuracy"],
            memory=memory_in_use(),
        )
        if self.journal and (step % self.config.log_every == 0 or step % per_epoch == 0):
            means = {
                name: sum(row[name] for row in self._interval) / len(self._interval) if self._interval else math.nan
                for name in ("loss", "accuracy")
            }
            self.journal.write(
                "train",
                step,
                epoch=step / per_epoch,
                **means,
                learning_rate=metrics["learning_rate"],
                gradient_norm=metrics["gradient_norm"],
                images_per_second=self.display.rate,
                seconds=self._seconds(),
            )
            self._interval.clear()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _not_finite(self, step: int, metrics: dict[str, float]) -> UserError:
        self.checkpoints.wait()
        steps = self.checkpoints.steps
        good = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        return UserError(
            f"the loss or gradient of step {step} is not finite (loss {metrics['loss']}, gradient norm "
            f"{metrics['gradient_norm']}, learning rate {metrics['learning_rate']:.3g}); {good} in "
            f"{self.checkpoints.directory}; lower --learning-rate, or leave such updates out with --on-nan skip"
        )

    def _evaluate(self, state: TrainState, step: int) -> None:
        progress, per_epoch = self.progress, self.setup.steps_per_epoch
        train = progress.train
        parts = [f"train {train['train_loss']:.4f} {train['train_accuracy']:.2%}"]
        if skipped := per_epoch - progress.steps:
            parts.append(f"{skipped:,} of {counted(per_epoch, 'update')} skipped")
        for weights in ("model", "ema") if self.setup.uses_ema else ("model",):
            arrays = model_arrays(state, ema=weights == "ema")
            result = self.setup.evaluate(arrays, self.setup.evaluation_batches(self.test))
            if self.journal:
                self.journal.write(
                    "evaluation",
                    step,
                    epoch=step / per_epoch,
                    weights=weights,
                    loss=result.loss,
                    accuracy=result.accuracy,
                    top5=result.top5,
                    **train,
                    seconds=self._seconds(),
                )
            name = "test" if weights == "model" else "EMA"
            parts.append(f"{name} {result.loss:.4f} {result.accuracy:.2%}")
            if result.accuracy > progress.best.get(weights, -1.0):
                progress.best[weights] = result.accuracy
                parts[-1] += " (best)"
                self._export(arrays, weights, result.accuracy, step)
        epoch = f"epoch {step // per_epoch}/{self.setup.config.schedule.epochs}"
        self.display.say(f"{epoch}  " + "  ".join(parts) + f"  [{duration(self._seconds())}]")
        progress.loss = progress.accuracy = progress.steps = 0
        self._plot()

    def _export(self, arrays: dict[str, jax.Array], weights: str, accuracy: float, step: int) -> None:
        """The weights under torchvision's names, with what one needs to use them."""
        if not self.first:
            return
        config = self.setup.config
        preprocessing = Preprocessing(config.data.eval_transform, config.data.mean, config.data.std)
        metadata = {
            **metadata_of(config.model.name, preprocessing, self.source.class_names),
            "accuracy": f"{accuracy:.4f}",
            "step": str(step),
        }
        write_checkpoint(self.best_path(weights), to_torch(self.setup.network.model(arrays)), metadata)

    def best_path(self, weights: str) -> Path:
        return self.workdir / ("best.safetensors" if weights == "model" else "best_ema.safetensors")

    def _save(self, state: TrainState) -> None:
        self.progress.seconds = self._seconds()
        self.checkpoints.save(state, asdict(self.progress))

    def _plot(self, *, now: bool = False) -> None:
        if self.first and (now or time.monotonic() - self._plotted > PLOT_SECONDS):
            plot_curves({self.setup.config.recipe: read_metrics(self.workdir)}, self.workdir / "curves.png")
            self._plotted = time.monotonic()

    def _interrupted(self, state: TrainState, interruption: Interruption) -> int:
        self.checkpoints.close()
        self._plot(now=True)
        command = f"{invocation()} --resume --workdir {shlex.quote(str(self.workdir))}"
        command += " --distributed" if self.config.distributed else ""
        self.display.say(f"stopped and saved behind step {int(state['step']):,}; go on with\n  {command}")
        return interruption.exit_status

    def _finish(self, state: TrainState) -> None:
        self.checkpoints.wait()
        self._plot(now=True)
        last = [row for row in read_metrics(self.workdir) if row["kind"] == "evaluation" and row["weights"] == "model"]
        self.display.stop()
        best = ", ".join(
            f"{'best' if weights == 'model' else 'best of the moving average'} {accuracy:.2%}"
            for weights, accuracy in self.progress.best.items()
        )
        if last:
            self.display.say(
                f"test accuracy {last[-1]['accuracy']:.2%} ({best}) after {duration(self.progress.seconds)}\n"
                f"  weights     {', '.join(str(self.best_path(name)) for name in self.progress.best)}\n"
                f"  checkpoint  {self.workdir / 'checkpoints' / str(self.checkpoints.steps[-1])}\n"
                f"  metrics     {self.workdir / 'metrics.jsonl'}\n"
                f"  curves      {self.workdir / 'curves.png'}"
            )


def train(config: TrainConfig, console: Console) -> int:
    """Runs a configuration to its end; returns the exit status.

    Raises:
        UserError: for whatever the user can mend.
    """
    config = choose_workdir(resolve(config))
    if config.run.resume:
        check_same_run(config)
    mesh = open_devices(config.run)
    if jax.process_index() > 0:
        console.quiet = True
    data = config.data
    # Many hosts would all prepare a data set at once, in the same place.
    open_split = partial(open_source, data.data, data_dir=data.data_dir, may_prepare=not config.run.distributed)
    source, test = open_split("train"), open_split("test")
    steps_per_epoch(source, config.batch_size)
    if config.run.resume:
        assert config.run.workdir is not None
        check_same_data(config.run.workdir, source)
    setup = Setup(config, mesh, facts_of(source))
    if config.model.cache_features:
        setup, source, test = cache_features(setup, source, test, console)
    return Run(setup, source, test, console).execute()
