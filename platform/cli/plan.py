"""`mixtura plan`."""

from __future__ import annotations

import shlex
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Phase, Recipe

if TYPE_CHECKING:
    from mixtura.platform.orchestration.plan import Plan

_WIDTH = 100

_PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "buffers": "communication buffers",
    "activations": "activations",
    "bias": "position bias and mask",
    "logits": "logits of the loss",
    "working": "backward's own (estimate)",
    "update": "or, in the update",
    "total": "most at a time",
}


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    phase: Phase = None,
    gpu: Annotated[
        str, typer.Option(help="a100-40, a100-80, h100, h200, b200, l4, a10g, v100; or cpu, a core a worker.")
    ] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Training processes, one for each GPU; the recipe's if not given.", min=1)
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of the peak that the matrix products reach.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Of one GPU for an hour, in any currency.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a run takes before anything is spent: parameters, memory, FLOPs, hours, money; and what fits.

    Reads no data and downloads nothing.

    Example: mixtura plan paper/multitask model.size=11B training.precision=bf16 --gpu h200 --workers 64 --price 3.5
    """
    from mixtura.platform.cli.output import print_json
    from mixtura.platform.orchestration.plan import Asked, as_plain, make_plan
    from mixtura.platform.orchestration.tasks import chosen, load_runs

    runs = chosen(recipe, load_runs(recipe, overrides or []), phase)
    plans = {
        run.name: make_plan(recipe, run.config, Asked(gpu, workers or run.config.executor.workers, mfu, price))
        for run in runs
    }
    if as_json:
        plain = {name: as_plain(made) for name, made in plans.items()}
        print_json({"phases": plain} if len(plain) > 1 else next(iter(plain.values())))
        return
    for name, made in plans.items():
        if name is not None:
            _say(f"Phase {name}")
        _print_plan(made, overrides or [])


def _print_plan(made: Plan, overrides: list[str]) -> None:
    from mixtura.platform.cli.output import print_lines

    _print_model(made)
    _print_run(made)
    _print_memory(made)
    _print_time(made)
    print_lines(*_recommendation(made, overrides), "")
    for line in made.assumptions():
        _say(line, bullet="- ")


def _print_model(made: Plan) -> None:
    from mixtura.platform.cli.output import print_table

    weights, model = made.planned.weights, made.planned.model
    total, frozen = weights.trained_elements + weights.frozen_elements, weights.frozen_elements
    layers = f"{model.num_layers} + {model.num_decoder_layers}" if made.planned.encoder_length else model.num_layers
    trained = f"{weights.trained_elements:,} trained, {frozen:,} frozen" if frozen else "all trained"
    _say(
        f"{made.recipe}: {model.architecture}, {layers} layers, d_model {model.d_model}, d_ff {model.d_ff}, "
        f"{model.num_heads} heads of {model.d_kv}; {trained}"
    )
    counts = {**made.parts, "all": total}
    print_table(
        "",
        [
            {"part": part, **_right("parameters", count, "{:,}", 14), **_right("share", count / total, "{:.1%}", 6)}
            for part, count in counts.items()
        ],
    )


def _print_run(made: Plan) -> None:
    from mixtura.platform.cli.output import formatted, print_table

    steps, rows = made.config.training.steps, made.config.training.global_batch_size
    encoder, decoder = made.positions
    sides = [f"{count:,} {side}" for side, count in (("encoder", encoder), ("decoder", decoder)) if count]
    total = _large((encoder + decoder) * steps)
    _say(f"{steps:,} steps of {rows:,} rows: {' and '.join(sides)} positions a step, {total} in all")
    print_table(
        "",
        [
            {
                "task": task["task"],
                **_right("size", task["size"], "{:,}", 13),
                **_right("share", task["share of examples"], "{:.1%}", 6),
                **_right("examples", task["examples"], "{:,}", 13),
                **_right("epochs", None if task["epochs"] is None else formatted(round(task["epochs"], 3)), "{}", 7),
            }
            for task in made.tasks()
            if task["share of examples"] != 0
        ],
    )


def _print_memory(made: Plan) -> None:
    from mixtura.platform.cli.output import print_table

    fits, own = made.stages(), made.setting
    unit, name = (1e9, "GB") if max(fit.memory.total for fit in fits) >= 1e9 else (1e6, "MB")
    there = (made.device.memory_bytes - made.device.overhead_bytes) / unit
    values = {label: [getattr(fit.memory, part) for fit in fits] for part, label in _PARTS.items()}
    values[f"left of {there:,.1f}"] = [fit.free_bytes for fit in fits]
    _say(
        f"Memory on {made.asked.workers} x {made.device.name}: {made.config.training.precision}, "
        f"{made.config.optimizer.name}, microbatch {own.microbatch}, "
        f"{'with' if own.activation_checkpointing else 'without'} activation checkpointing; "
        f"the recipe has ZeRO {own.stage}"
    )
    columns = [f"ZeRO {fit.setting.stage}" for fit in fits]
    print_table(
        "",
        [
            {
                f"{name} on each worker": label,
                **_joined(
                    _right(column, value / unit, "{:,.2f}", 10) for column, value in zip(columns, row, strict=True)
                ),
            }
            for label, row in values.items()
        ],
    )


def _print_time(made: Plan) -> None:
    from mixtura.platform.cli.output import formatted, print_table

    flops, rows = made.flops, []
    for checkpointing in (False, True):
        cost = made.cost(activation_checkpointing=checkpointing)
        computed = _large(flops.hardware(activation_checkpointing=checkpointing))
        rows.append(
            {
                "activation checkpointing": "on" if checkpointing else "off",
                **_right("FLOP a step", computed.strip(), "{}", 11),
                **_right("seconds a step", formatted(cost["step_s"]), "{}", 14),
                **_right("in all", _duration(cost["hours"] or 0.0), "{}", 10),
                **_right("GPU hours" if made.on_gpu else "core hours", cost["gpu_hours"], "{:,.1f}", 11),
                **({} if cost["money"] is None else _right("money", cost["money"], "{:,.0f}", 10)),
            }
        )
    parts = {"encoder": flops.encoder, "decoder": flops.decoder, "attention": flops.attention, "logits": flops.head}
    shares = ", ".join(f"{name} {value / flops.forward:.0%}" for name, value in parts.items() if value)
    total = flops.step * made.config.training.steps
    _say(f"Model FLOPs: {_large(flops.step)}FLOP a step ({shares}), {total:.3g} FLOP in all")
    print_table("", rows)


def _recommendation(made: Plan, overrides: list[str]) -> list[str]:
    """What fits, as a command to paste."""
    best, device = made.recommended(), f"{made.asked.workers} x {made.device.name}"
    if best is None:
        needed = made.workers_needed()
        more = f"{needed} workers would do" if needed else "no number of workers would do: shorter rows, or another GPU"
        return [f"Nothing fits on {device}; {more}."]
    fits = "The recipe's own settings fit" if made.fit(made.setting).fits else "The recipe's own settings do not fit"
    instead = "" if best.setting == made.setting else "; these do"
    wanted = [*overrides, *made.overrides(best.setting)]
    latest = {one.partition("=")[0]: one for one in wanted}.values()
    return [
        f"{fits}{instead}, with {best.free_bytes / 1e9:.1f} GB left:",
        "  " + " ".join(["mixtura train", *(shlex.quote(word) for word in (made.recipe, *latest))]),
    ]


def _right(name: str, value: Any, form: str, width: int) -> dict[str, str]:
    """A cell with its column's name, both to the right."""
    return {name.rjust(width): ("-" if value is None else form.format(value)).rjust(width)}


def _joined(cells: Any) -> dict[str, str]:
    return {name: text for cell in cells for name, text in cell.items()}


def _say(text: str, bullet: str = "") -> None:
    from mixtura.platform.cli.output import print_lines

    print_lines(*textwrap.wrap(text, _WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet)))


def _large(count: float) -> str:
    """A count with the letter of its unit.

    >>> _large(34_359_738_368), _large(1_500_000)
    ('34.4 G', '1.5 M')
    """
    units = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next((f"{count / size:.1f} {unit}" for unit, size in units if count >= size), f"{count:g} ")


def _duration(hours: float) -> str:
    """Hours in the unit that fits.

    >>> _duration(0.02), _duration(5.25), _duration(100)
    ('1.2 min', '5.2 h', '4.2 days')
    """
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
