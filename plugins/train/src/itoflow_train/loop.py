"""The training loop, on Hugging Face accelerate: one process or many, any device, mixed precision."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator

from itoflow import GenerativeModel, InputError, NetworkField, compose
from itoflow_train.ema import moving_average
from itoflow_train.log import Log
from itoflow_train.recipe import Recipe, TrainingOptions
from itoflow_train.run import Run
from itoflow_train.state import Own, load_state, save_state
from itoflow_train.values import Values


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Arguments:
        model: with the averaged weights, in evaluation mode.
        seconds: wall time of the loop.
        loss: mean of the last logged steps.
    """

    model: GenerativeModel
    seconds: float
    loss: float


def build(recipe: Recipe) -> GenerativeModel:
    """The recipe's model, initialised by its seed."""
    torch.manual_seed(recipe.training.seed)
    return compose(
        process=recipe.process,
        objective=recipe.objective,
        backbone=recipe.backbone,
        sampler=recipe.sampler,
        data=recipe.data.spec,
    )


def fit(
    recipe: Recipe, model: GenerativeModel, run: Run, *, resume: bool = False, quiet: bool = False, cpu: bool = False
) -> Trained:
    """Train a model on the recipe's data.

    Arguments:
        run: gets metrics, checkpoints and the state to go on from, written by the main process; the same for all.
        resume: go on from the last state of the run.
        quiet: show no progress bar; there is none either when standard error is not a terminal.
        cpu: stay on the CPU.

    Raises:
        InputError: a batch that does not divide among the processes; dequantisation of continuous data; a run that
            cannot go on, see `Run.last_state` and `itoflow_train.state.load_state`.
        NumericalError: the loss became non-finite; names the step.
    """
    options = recipe.training
    accelerator = Accelerator(mixed_precision=options.precision, cpu=cpu)
    values = Values.of(recipe)
    examples = values.source.load("train")
    share = _share(options.batch_size, accelerator.num_processes)
    optimizer = torch.optim.AdamW(_groups(model, options.weight_decay), options.learning_rate, betas=options.betas)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    average = moving_average(model.field, options.ema)
    accelerator.register_for_checkpointing(average)
    seed = options.seed * 1_000_003 + accelerator.process_index
    generator = torch.Generator(accelerator.device).manual_seed(seed)
    examples = examples.to(accelerator.device)
    own: Own = {}
    if resume:
        own = load_state(accelerator, run.last_state())
        own["losses"] = own["losses"].to(accelerator.device)
        generator.set_state(own["noise"])
        if accelerator.is_main_process:
            run.rewind(own["step"])
    log = Log(options, own, run if accelerator.is_main_process else None, quiet)
    batches = examples.batches(share, torch.Generator().manual_seed(seed), start=log.step)
    for step in range(log.step + 1, options.steps + 1):
        batch = next(batches)
        x = values.enter(values.noisy(batch.x, generator))
        rate = options.learning_rate * schedule(options, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            loss = wrapped(x, batch.cond, generator=generator).mean()
        accelerator.backward(loss)
        if options.clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model.field)
        log.add(loss.detach(), rate)
        if step % options.checkpoint_every == 0 and step < options.steps:
            if accelerator.is_main_process:
                run.checkpoint(_averaged(model, average.module), step)
            save_state(accelerator, run.state, {**log.state(), "noise": generator.get_state()})
    log.bar.close()
    return Trained(_averaged(model, average.module), log.seconds(), log.mean)


def _share(batch: int, processes: int) -> int:
    """Of a batch, for one process.

    Raises:
        InputError: it does not divide.
    """
    share, rest = divmod(batch, processes)
    if share < 1 or rest:
        raise InputError(
            f"training.batch_size = {batch} does not divide among {processes} processes. Use a multiple, e.g. "
            f"{max(share, 1) * processes}."
        )
    return share


def schedule(options: TrainingOptions, step: int) -> float:
    """The learning rate over its peak at a step from 1: linear warm-up, then the decay to zero."""
    if step <= options.warmup:
        return step / options.warmup
    progress = (step - options.warmup) / (options.steps - options.warmup + 1)
    match options.decay:
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, and none for biases and gains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _averaged(model: GenerativeModel, field: torch.nn.Module) -> GenerativeModel:
    """The model with the averaged field, apart from the one in training."""
    parts = model.process, model.objective, model.backbone, model.sampler, model.data
    return GenerativeModel(*parts, cast(NetworkField, copy.deepcopy(field))).eval()
