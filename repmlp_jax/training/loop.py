"""Training from a configuration to a trained and a fused model on disk; read it from top to bottom."""

import contextlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repmlp_jax.fusing.host import host
from repmlp_jax.fusing.report import count_parameters
from repmlp_jax.interop.initial_weights import with_weights_of
from repmlp_jax.local_path import local_path
from repmlp_jax.progress import print_line, progress_bar
from repmlp_jax.storage.checkpoint_format import CheckpointError
from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.storage.models import check_savable
from repmlp_jax.training import sharding
from repmlp_jax.training.average import models_of
from repmlp_jax.training.callback import OnRow, error_of
from repmlp_jax.training.config import check_config
from repmlp_jax.training.environment import environment
from repmlp_jax.training.interruption import Interruption
from repmlp_jax.training.metrics import Metrics, replace_text
from repmlp_jax.training.only_run import only_run
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.pace import Pace
from repmlp_jax.training.parts import parts_of
from repmlp_jax.training.profiler import Profiler
from repmlp_jax.training.results import check_results, fuse_and_save, score
from repmlp_jax.training.resuming import check_processes, check_resumable
from repmlp_jax.training.saving import Saving
from repmlp_jax.training.step import RETYPED, fetch_metrics, init_state, make_step
from repmlp_jax.training.task import Task
from repmlp_jax.training.times import Times

logger = logging.getLogger("repmlp_jax")

LARGEST_DAMAGED_SHARE = 0.05  # of the examples; more would change what is learned
# While weights change fast, the test scores of the first epochs waver.
LAG = "           (tests use the norms' running statistics, which lag behind the weights while these change fast)"
LAGGING_STEPS = 100  # ten times those that the statistics take to follow
DAMAGE_COUNTS_FROM = 1000  # examples; the share of fewer is too uncertain


def train(
    config: ConfigDict,
    workdir: str | Path,
    make_task: Callable[[ConfigDict, Mesh, jax.Array], Task],
    on_row: OnRow | None = None,
) -> dict:
    """Trains a model on a task, fuses it, and compares both.

    It writes `config.json`, `metrics.csv`, `times.csv`, `curves.png`, `tensorboard/` and `checkpoints/` to `workdir`,
    and at the end `results.json` and what `load_model` reads: `model/` and `fused/`, with `ema_decay` also `ema/` and
    `ema_fused/`. A second call with the same configuration resumes from the last complete checkpoint and ends with
    bit-identical parameters; fields that do not change what is learned (`config.FREE`) may differ, and `epochs` where
    the learning rates so far do not depend on it. With several processes, every process calls it.

    Args:
        config: as `default_config()`.
        workdir: the run's folder; it is created.
        make_task: creates the task from the configuration, the devices, and a key for the order of the examples.
        on_row: as of `train_and_evaluate`.

    Returns:
        The content of `results.json`, see `results.fuse_and_save`.

    Raises:
        TypeError: if `save_model` would not take the model, see `check_savable`.
        ValueError: if the configuration is not valid, `workdir` holds a run of another configuration or other flags of
            JAX, or more than 5 % of at least 1,000 examples are damaged.
        FileExistsError: if one of these in `workdir` is nothing that `save_model` wrote.
        BlockingIOError: if another run is in `workdir`.
        FloatingPointError: if a loss, a parameter or a statistic is not finite; the message names the step.
        SystemExit: after SIGTERM or SIGINT (Ctrl-C), once the state is saved.
        BaseException: what `on_row` raises, once the state is saved.
    """
    config = check_config(config)
    workdir = local_path(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch_size("batch_size", config.batch_size, mesh)
    check_processes(config)
    check_results(workdir, averaged=config.ema_decay > 0)
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    task = make_task(for_the_devices(config, mesh), mesh, order_key)
    if task.feed.examples < config.batch_size:
        raise ValueError(f"batch_size={config.batch_size} is more than the {task.feed.examples} training images")
    parts = parts_of(config, task.make_model)
    with only_run(workdir):
        check_resumable(workdir, config, task.feed.examples)
        return _train_task(config, workdir, mesh, task, parts, init_key, step_key, on_row)


def _train_task(config, workdir, mesh, task, parts, init_key, step_key, on_row):
    is_chief = jax.process_index() == 0
    steps_per_epoch = task.feed.examples // config.batch_size
    final_step = config.epochs * steps_per_epoch
    most_steps_since_best = config.patience * steps_per_epoch or math.inf

    optimizer, learning_rate = make_optimizer(config, steps_per_epoch, parts.factors)
    kept = dict(averaged=config.ema_decay > 0, trains=parts.filter, scaled_by=config.loss_scale)

    def make_model(key):
        return task.make_model(nnx.Rngs(key))

    def make_state(key):
        return init_state(make_model(key), optimizer, task.correct_dtype, **kept)

    abstract_model = nnx.eval_shape(make_model, init_key)
    result = task.result(abstract_model)
    check_savable(result)  # before it is trained
    if is_chief:
        print_line(_introduction(config, count_parameters(result), task.feed.examples, steps_per_epoch, mesh, workdir))
        if summary := parts.summary(abstract_model):
            print_line(summary)
    graphdef = nnx.graphdef(abstract_model)
    in_training = nnx.graphdef(parts.with_frozen_norms(abstract_model))
    abstract_state = jax.eval_shape(make_state, init_key)
    shardings = sharding.state_shardings(abstract_state, mesh)
    sizes = dict(batch_size=config.batch_size, steps_per_epoch=steps_per_epoch, accumulate=config.accumulate)
    means = dict(ema_decay=config.ema_decay, trains=parts.filter)
    one_step = make_step(in_training, optimizer, task.loss, **sizes, **means, mesh=mesh)
    train_steps = task.feed.compile(one_step, step_key, shardings)
    pace = Pace(config.steps_per_call)
    names = [prefix + name for prefix in (("", "ema_") if config.ema_decay else ("",)) for name in task.scores]
    plain_config = json.loads(config.to_json())

    def first_state():
        """The state before the first step, with the weights of `init_from`, if set."""
        # On the host and not in one program, which took 25 seconds to compile for a RepMLPNet-T224.
        with jax.default_device(host()):
            model = make_model(init_key)
            if config.init_from:
                model = with_weights_of(config.init_from, model, head=config.init_head)
            return sharding.put_state(init_state(model, optimizer, task.correct_dtype, **kept), shardings)

    def results_of(state):
        return {prefix: task.result(model) for prefix, model in models_of(state, graphdef).items()}

    def is_row_due(step):
        return step % steps_per_epoch == 0 or _is_multiple(step, config.log_every_steps)

    with contextlib.ExitStack() as stack:
        made_with = dict(config=plain_config, environment=environment(task.feed.examples))
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", best=f"test_{task.best}", **made_with))
        saving = Saving(checkpoints, config.checkpoint_every_seconds)
        interruption = stack.enter_context(Interruption())
        profiler = stack.enter_context(Profiler(workdir / "profile", config.profile_steps))
        placed = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), abstract_state, shardings)
        step, state = checkpoints.restore(placed, retyped=RETYPED) or (0, first_state())
        if is_chief:  # not before: with an init_from that cannot be read there is no run
            replace_text(workdir / "config.json", json.dumps(plain_config, indent=1))
        if step and is_chief:
            print_line(f"resuming from step {step} of {final_step}")
        metrics = stack.enter_context(contextlib.closing(Metrics(workdir, step, names))) if is_chief else None
        if metrics is not None:
            metrics.warn_of_missing(done for done in range(1, step + 1) if is_row_due(done))
        times = Times(workdir, step, task.feed)
        explained = False
        bar = stack.enter_context(_progress_bar(config.batch_size, step, final_step))
        is_over = step == final_step or saving.steps_since_best(step) >= most_steps_since_best
        while not is_over:
            epoch = step // steps_per_epoch + 1
            bar.set_description(f"epoch {epoch}/{config.epochs}", refresh=False)
            stop = _next_stop(step, steps_per_epoch, config)
            count = min(pace.steps, stop - step)
            with profiler.trace(step, count), pace.timed(count), times.timed(count):
                state, seen = fetch_metrics(train_steps(state, step, count))
            step = seen.step
            bar.set_postfix(loss=f"{seen.loss:.4f}", accuracy=f"{seen.accuracy:.2%}", refresh=False)
            bar.update(step * config.batch_size - bar.n)
            if seen.failed_step >= 0:
                saving.save_held()
                checkpoints.wait()
                raise FloatingPointError(_failure(seen.failed_step, checkpoints, config))
            _check_damaged(seen, config.batch_size)
            asked_to_stop = interruption.requested()
            if step < stop and not asked_to_stop:
                continue

            scores: dict[str, float] = {}
            is_end_of_epoch = step % steps_per_epoch == 0
            if is_end_of_epoch and (epoch % config.eval_every_epochs == 0 or step == final_step):
                for prefix, model in results_of(state).items():
                    scores |= {prefix + name: value for name, value in task.evaluator.evaluate(model).items()}
            tested = {f"test_{name}": scores[name] for name in names if name in scores}
            images_per_second = config.batch_size / pace.seconds_per_step
            failure = None
            if is_row_due(step):
                row = dict(
                    epoch=epoch,
                    step=step,
                    learning_rate=float(learning_rate(step - 1)),
                    train_loss=seen.loss,
                    train_accuracy=seen.accuracy,
                    images_per_second=images_per_second,
                    **tested,
                )
                if metrics is not None:
                    metrics.add(**row)
                failure = error_of(on_row, row)
            if is_chief:
                times.add(step)
            if is_chief and is_end_of_epoch:
                print_line(_line_of_epoch(epoch, seen, names, scores, images_per_second))
                if not explained and step <= LAGGING_STEPS and _lags(seen, scores):
                    print_line(LAG)
                    explained = True
            is_over = step == final_step or saving.steps_since_best(step, tested) >= most_steps_since_best
            # After the row: a run that resumed from this checkpoint would not write the row again.
            must = asked_to_stop or is_over or failure is not None
            if must or is_end_of_epoch or _is_multiple(step, config.checkpoint_every_steps):
                saving.offer(step, state, tested, must=must)
            if failure is not None:
                checkpoints.wait()
                failure.add_note(f"on_row raised this; step {step} is saved, and the same call resumes from it")
                raise failure
            if asked_to_stop:
                checkpoints.wait()
                name = interruption.signal.name
                logger.warning("%s: step %d is saved; the same command resumes from it", name, step)
                raise SystemExit(128 + interruption.signal)

    if damaged := int(state.damaged):
        logger.warning("%d damaged examples were replaced by others in %d steps", damaged, step)
    weights = dict(which="last", step=step, epoch=step // steps_per_epoch, steps_trained=step)
    best = checkpoints.best_step()
    if step < final_step and best is not None and is_chief:
        print_line(_early_end(task.best, checkpoints.scores()[best], best // steps_per_epoch, config.patience))
    if config.final_weights == "best" and best is not None:
        weights |= dict(which="best", step=best, epoch=best // steps_per_epoch)
    if weights["step"] != step:
        state = None  # which frees its memory
        try:
            restored = checkpoints.restore(placed, weights["step"], retyped=RETYPED)
        except CheckpointError as error:
            hint = f"with final_weights='last' this run ends with the weights of step {step}"
            raise CheckpointError(f"the best weights cannot be read; {hint}: {error}") from error
        assert restored is not None, "only without a step there may be none"
        _, state = restored
    models = results_of(state)
    training = times.figures(config.batch_size, best) if is_chief else None
    return fuse_and_save(workdir, models[""], task, weights, training, average=models.get("ema_"))


def for_the_devices(config: ConfigDict, mesh: Mesh) -> ConfigDict:
    """The configuration with an `eval_batch_size` that can be split: it decides the speed alone."""
    fitting = ConfigDict(config)
    fitting.eval_batch_size = sharding.rounded_up(config.eval_batch_size, mesh)
    return fitting


def _next_stop(step: int, steps_per_epoch: int, config: ConfigDict) -> int:
    """The next step at which an epoch ends, or a checkpoint or a row is due."""
    periods = steps_per_epoch, config.checkpoint_every_steps, config.log_every_steps
    return min((step // period + 1) * period for period in periods if period)


def _is_multiple(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _line_of_epoch(epoch, seen, names, scores, images_per_second) -> str:
    parts = [f"epoch {epoch:3d}", f"train loss {seen.loss:7.4f}", f"train accuracy {seen.accuracy:7.2%}"]
    parts += [f"test {name.replace('_', ' ')} {score(name, scores[name]):>7}" for name in names if name in scores]
    return "  ".join([*parts, f"{images_per_second:9,.0f} images/s"])


def _introduction(config, parameters, examples, steps_per_epoch, mesh, workdir) -> str:
    kinds = " and ".join(sorted({device.device_kind for device in mesh.devices.flat}))
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    length = f"{epochs} of {steps_per_epoch:,} steps" if config.epochs else "no epoch"
    return "\n".join(
        [
            f"training  {config.model}, {parameters:,} parameters, on {config.dataset}: {examples:,} images, {length}",
            f"device    {mesh.size} × {kinds}",
            f"writing   {workdir}",
        ]
    )


def _early_end(name, best, epoch, patience) -> str:
    return (
        f"ended early: no test {name.replace('_', ' ')} above the {score(name, best)} of epoch {epoch} in "
        f"patience={patience} epochs"
    )


def _lags(seen, scores) -> bool:
    """Whether the test accuracy is more than ten points below that of training."""
    return seen.accuracy - scores.get("accuracy", seen.accuracy) > 0.1


def _progress_bar(batch_size: int, step: int, final_step: int):
    sizes = dict(total=final_step * batch_size, initial=step * batch_size)
    # Without smoothing the rate is that of everything: training, evaluation, checkpoints, and waiting for data.
    return progress_bar(**sizes, smoothing=0, unit=" images", unit_scale=True, disable=jax.process_index() > 0)


def _check_damaged(seen, batch_size):
    """Raises ValueError if too many examples are damaged; all processes see the same count."""
    read = seen.step * batch_size + seen.damaged
    if read >= DAMAGE_COUNTS_FROM and seen.damaged > LARGEST_DAMAGED_SHARE * read:
        raise ValueError(
            f"{seen.damaged} of {read} examples are damaged, more than {LARGEST_DAMAGED_SHARE:.0%}; the log names them"
        )


def _failure(failed_step, checkpoints, config):
    scaled = ", or its gradients with a loss scale of 1" if config.loss_scale else ""
    return (
        f"the loss of step {failed_step} is not finite, or a parameter or statistic after it{scaled}; the last "
        f"checkpoint is of step {max(checkpoints.steps(), default=0)}. A lower learning_rate (now "
        f"{config.learning_rate:g}) or more warmup_epochs (now {config.warmup_epochs:g}) may help"
    )
