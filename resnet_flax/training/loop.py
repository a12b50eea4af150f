"""The training loop: steps, metrics, evaluations, checkpoints, and an orderly end."""

from __future__ import annotations

import errno
import shlex
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import jax
from jax.experimental import multihost_utils
from rich.console import Console

from parity.errors import ParityError
from resnet_flax.data import Source, open_source
from resnet_flax.errors import UserError
from resnet_flax.figures import drawn
from resnet_flax.models import ResNet
from resnet_flax.trackers.base import Open, tracked_run
from resnet_flax.trackers.registry import Trackers, find_trackers
from resnet_flax.training.agreement import agree
from resnet_flax.training.best import BestWeights
from resnet_flax.training.checkpoints import Checkpoints
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.devices import memory_in_use, open_devices
from resnet_flax.training.display import Display, counted, duration, invocation
from resnet_flax.training.feature_cache import cache_features
from resnet_flax.training.hosts import Hosts
from resnet_flax.training.interruption import Interruption
from resnet_flax.training.memory import is_out_of_memory, out_of_memory
from resnet_flax.training.metrics import Backlog, Journal, read_metrics
from resnet_flax.training.opening import headline, notes
from resnet_flax.training.plots import plot_curves
from resnet_flax.training.progress import Progress
from resnet_flax.training.setup import Setup, facts_of, resolve
from resnet_flax.training.state import TrainState, model_arrays
from resnet_flax.training.workdir import Workdir, choose_workdir

PROFILED = (11, 21)  # of the steps of this process: the first in the trace, and the first after it
PLOT_SECONDS = 60.0  # the least time between two plots during the run


class Run:
    """One run in its workdir, new or resumed.

    Args:
        setup: its parts.
        source, test: the training and the test set.
        workdir: claimed and locked.
        checkpoints: of the workdir.
        progress: of the steps already taken.
        start: the number of these.
        openers: of the trackers.
        saved: the configuration that the run had until now, which differs at most in the number of epochs.
    """

    def __init__(
        self,
        setup: Setup,
        source: Source,
        test: Source,
        console: Console,
        *,
        workdir: Workdir,
        checkpoints: Checkpoints,
        progress: Progress,
        start: int,
        openers: Mapping[str, Open],
        saved: TrainConfig | None = None,
    ):
        self.setup, self.source, self.test = setup, source, test
        self.config = setup.config.run
        self.workdir, self.checkpoints, self.progress, self.start = workdir, checkpoints, progress, start
        self.first = jax.process_index() == 0
        self.saved = saved or setup.config
        self.display = Display(console, total=setup.total_steps, done=start, batch_size=setup.config.batch_size)
        self.journal = None
        if self.first:
            tracked = tracked_run(setup.config, workdir.path, start)
            self.journal = Journal(workdir, start, Trackers(openers, tracked, self.display.say))
        self.best = BestWeights(setup, source, workdir, progress)
        self.backlog = Backlog()
        self.stepped = False
        self._learning_rate = 0.0  # of the last step
        self._began = time.monotonic() - progress.seconds
        self._plotted = time.monotonic()

    def execute(self, state: TrainState) -> int:
        """Trains to the end or until stopped; returns the exit status."""
        setup, finished = self.setup, False
        try:
            self.display.say(headline(setup, self.source, self.test, self.start))
            for note in notes(setup, self.workdir, self.saved, self.start):
                self.display.say(note)
            for name, where in self.journal.trackers.where.items() if self.journal else ():
                if name in self.config.track:
                    self.display.say(f"tracked by {name}: {where}")
            self.best.replace_damaged(state, self.start)
            if self.first and self.saved.schedule.epochs != setup.config.schedule.epochs:
                self.workdir.change_epochs(setup.config.schedule.epochs)
            with Interruption(self.display.say) as interruption:
                state = self._steps(state, interruption)
                if int(state["step"]) < setup.total_steps and not self._has_waited():
                    return self._interrupted(state, interruption)
            self._finish(state)
            finished = True
        except (OSError, ParityError) as error:  # a ParityError is about the file of the best weights, and names it
            if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"{self.workdir}: {error.strerror}" if isinstance(error, OSError) else str(error)
            last = self.checkpoints.last_whole()
            intact = "there is no checkpoint yet" if last is None else f"the checkpoint of step {last} is intact"
            raise UserError(f"{what}; {intact}; fix that and resume with --resume") from error
        finally:
            self.display.stop()
            if self.journal:
                self.journal.close(finished=finished)
        return 0

    def _steps(self, state: TrainState, interruption: Interruption) -> TrainState:
        setup, per_epoch, start = self.setup, self.setup.steps_per_epoch, self.start
        every = self.config.checkpoint_every or per_epoch
        batches, compiled = setup.training_batches(self.source, start), set()
        for step in range(start + 1, setup.total_steps + 1):
            if self._has_waited():
                break
            batch = next(batches)
            self._profile(step - start)
            try:
                if (shape := batch["image"].shape) not in compiled:
                    state, metrics = self._first_step(state, batch, step)
                    compiled.add(shape)
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

    def _first_step(self, state: TrainState, batch, step: int) -> tuple[TrainState, dict[str, jax.Array]]:
        """The first step on images of this size."""
        if step == 1 and (note := self.setup.doubt(batch["image"])):
            self.display.say(f"warning: {note}")
        self.display.say(f"compiling the training step on inputs of {'x'.join(map(str, batch['image'].shape[1:]))} ...")
        began = time.monotonic()
        try:
            state, metrics = self.setup.train_step(state, batch)
        except ValueError as error:  # from tracing, such as a norm over a single value
            raise UserError(f"cannot train on images of shape {batch['image'].shape}: {error}") from error
        self.stepped = True
        self.display.say(f"compiled in {duration(time.monotonic() - began)}")
        self.display.start(step)
        return state, metrics

    def _profile(self, step: int) -> None:
        """With --profile, traces ten steps of this process once the pipeline is full."""
        if not self.config.profile or not self.first:
            return
        if step == PROFILED[0]:
            jax.profiler.start_trace(self.workdir.profile)
        elif step == PROFILED[1]:
            for done in self.backlog.all():
                self._record(*done)
            jax.profiler.stop_trace()
            self.display.say(f"Trace of ten steps written. To view it:\n  xprof --logdir {self.workdir.profile}")

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        """Records the metrics of one step; steps come in order."""
        if not metrics["finite"] and self.config.on_nan == "stop":
            raise self._not_finite(step, metrics)
        progress, per_epoch = self.progress, self.setup.steps_per_epoch
        self._learning_rate = metrics["learning_rate"]
        if metrics["finite"]:
            progress.add(metrics["loss"], metrics["accuracy"])
        self.display.step(
            step,
            epoch=f"{-(-step // per_epoch)}/{self.setup.config.schedule.epochs}",
            loss=progress.train["train_loss"],
            accuracy=progress.train["train_accuracy"],
            memory=memory_in_use(),
        )
        if step % self.config.log_every and step % per_epoch:
            return
        if self.journal:
            self.journal.write(
                "train",
                step,
                epoch=step / per_epoch,
                **progress.interval,
                learning_rate=metrics["learning_rate"],
                gradient_norm=metrics["gradient_norm"],
                images_per_second=self.display.rate,
                seconds=self._seconds(),
            )
        progress.interval_loss = progress.interval_accuracy = progress.interval_steps = 0

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _not_finite(self, step: int, metrics: dict[str, float]) -> UserError:
        self.checkpoints.wait()
        steps = self.checkpoints.steps
        good = f"the last good checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        return UserError(
            f"the loss or gradient of step {step} is not finite (loss {metrics['loss']}, gradient norm "
            f"{metrics['gradient_norm']}, learning rate {metrics['learning_rate']:.3g}); {good} in "
            f"{self.checkpoints.directory}; lower --learning-rate, or skip such updates with --on-nan skip"
        )

    def _evaluate(self, state: TrainState, step: int) -> None:
        progress, per_epoch = self.progress, self.setup.steps_per_epoch
        train = progress.train
        improved = False
        label = f"{step // per_epoch}/{self.setup.config.schedule.epochs}"
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
                    macro_f1=result.macro_f1,
                    split=self.test.split,
                    **train,
                    seconds=self._seconds(),
                )
            is_best = self.best.offer(arrays, weights, result, step)
            improved |= is_best
            self.display.epoch(
                label if weights == "model" else "EMA",
                self.test.split,
                test=(result.loss, result.accuracy),
                train=(train["train_loss"], train["train_accuracy"], self._learning_rate)
                if weights == "model"
                else None,
                seconds=self._seconds(),
                is_best=is_best,
            )
        if skipped := per_epoch - progress.steps:
            self.display.say(f"{skipped:,} of {counted(per_epoch, 'update')} skipped in epoch {label}")
        progress.loss = progress.accuracy = progress.steps = 0
        progress.waited = 0 if improved else progress.waited + 1
        self._plot()

    def _has_waited(self) -> bool:
        """Whether `--patience` is at its end."""
        return self.config.patience is not None and self.progress.waited >= self.config.patience

    def _save(self, state: TrainState) -> None:
        self.progress.seconds = self._seconds()
        if self.journal:  # or a loss of power could leave a checkpoint without the rows before it
            self.journal.sync()
        self.checkpoints.save(state, asdict(self.progress))

    def _plot(self, *, now: bool = False) -> None:
        if self.first and (now or time.monotonic() - self._plotted > PLOT_SECONDS):
            rows, path = read_metrics(self.workdir), self.workdir.curves
            config = self.setup.config
            title = f"{config.recipe}: {config.model.name} on {config.data.data}"
            is_drawn, note = drawn(path, lambda: plot_curves({config.recipe: rows}, path, title=title))
            if not is_drawn:
                self.display.say(f"note: {note}")
            self._plotted = time.monotonic()

    def _interrupted(self, state: TrainState, interruption: Interruption) -> int:
        self.checkpoints.wait()
        self._plot(now=True)
        command = resume_command(self.setup.config, self.workdir)
        self.display.say(f"Saved after step {int(state['step']):,}. To resume:\n  {command}")
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
        schedule, command = self.setup.config.schedule, resume_command(self.setup.config, self.workdir)
        if (step := int(state["step"])) < self.setup.total_steps:
            self.display.say(
                f"stopped after {step // self.setup.steps_per_epoch} of {counted(schedule.epochs, 'epoch')}: "
                f"{schedule.best_by} has not improved for {counted(self.progress.waited, 'epoch')}; to continue:\n"
                f"  {command} --patience N"
            )
        elif self.start == step:
            self.display.say(f"this run is finished; for more epochs:\n  {command} --epochs N")
        if last:
            self.display.say(
                f"{self.test.split} accuracy {last[-1]['accuracy']:.2%} ({best}) after "
                f"{duration(self.progress.seconds)}\n"
                f"  weights     {', '.join(str(self.workdir.weights(name)) for name in self.progress.best)}\n"
                f"  checkpoint  {self.workdir.checkpoints / str(self.checkpoints.steps[-1])}\n"
                f"  metrics     {self.workdir.metrics}\n"
                f"  curves      {self.workdir.curves}"
            )


def train(config: TrainConfig, console: Console, hosts: Hosts | None = None, *, loaded: ResNet | None = None) -> int:
    """Runs a configuration to its end; returns the exit status.

    Args:
        hosts: those of the run, where there are several.
        loaded: a network to start from, in place of the one that `config.model` describes.

    Raises:
        UserError: for anything that the user can fix.
    """
    config, workdir = choose_workdir(resolve(config))
    saved = None
    if config.run.resume:
        workdir.check_same_run(config)
        saved = workdir.load_config()
    mesh = open_devices(config.run)
    if jax.process_index() > 0:
        console.quiet = True
    openers = find_trackers(config.run.track) if jax.process_index() == 0 else {}
    data = config.data
    # Many hosts would all prepare a data set at once, in the same place.
    open_split = partial(
        open_source, data.data, data_dir=data.data_dir, may_prepare=not config.run.distributed, options=data.source
    )
    source, test = open_split("train"), open_split("val")
    setup = Setup(config, mesh, facts_of(source, config.loss.class_weights), loaded)
    if config.run.resume:
        workdir.check_same_data(source)
    if config.model.cache_features:
        setup, source, test = cache_features(setup, source, test, console)
    if setup.teacher is not None:  # before anything is written
        loss = config.loss
        part = f"{loss.teacher_weight:g} of the loss, at temperature {loss.teacher_temperature:g}"
        console.print(f"teacher: {loss.teacher}, {part}", highlight=False, soft_wrap=True)
        for note in setup.teacher.warnings(source.class_names):
            console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if hosts:
        agree(hosts, setup, source, test)
        hosts.way_on = f"resume with {resume_command(config, workdir)}"
    return _train_in(workdir, saved, setup, source, test, console, openers)


def resume_command(config: TrainConfig, workdir: Workdir) -> str:
    distributed = " --distributed" if config.run.distributed else ""
    return f"{invocation()} --resume --workdir {shlex.quote(str(workdir))}{distributed}"


def _train_in(
    workdir: Workdir,
    saved: TrainConfig | None,
    setup: Setup,
    source: Source,
    test: Source,
    console: Console,
    openers: Mapping[str, Open],
) -> int:
    config, first = setup.config, jax.process_index() == 0
    claims = first and not config.run.resume
    state = setup.state(setup.initial_arrays())  # most mistakes in the settings show here, before anything is written
    if claims:
        workdir.claim(config, source)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the workdir is claimed")
        workdir.require_shared()
    run = None
    with workdir.locked() if first else nullcontext():
        try:
            with Checkpoints(workdir.checkpoints, config.run.keep) as checkpoints:
                progress = Progress()
                if config.run.resume and (restored := checkpoints.restore(state)):
                    state, kept = restored
                    progress = Progress(**{name: x for name, x in kept.items() if name != "fingerprint"})
                run = Run(
                    setup,
                    source,
                    test,
                    console,
                    workdir=workdir,
                    checkpoints=checkpoints,
                    progress=progress,
                    start=int(state["step"]),
                    openers=openers,
                    saved=saved,
                )
                return run.execute(state)
        finally:
            if claims and not (run and run.stepped):
                workdir.release()
