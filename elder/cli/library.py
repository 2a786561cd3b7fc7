"""The command line of the library: select, compress, evaluate, bench. ``python -m elder`` runs it with no pipeline.

Heavy imports stay inside the commands, so that help appears at once.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from elder.cli.app import (
    AsJson,
    CalibrationFile,
    Device,
    Dtype,
    Layers,
    ModelName,
    Overrides,
    ParamsFile,
    Ratio,
    Samples,
    Seed,
    SelectionMethod,
    SeqLen,
    app,
    show,
)
from elder.errors import UserError
from elder.params import Params
from elder.process import prepare_libraries
from elder.settings import read_params, validate


@app.command()
def select(
    model: ModelName,
    method: SelectionMethod = None,
    layers: Layers = None,
    ratio: Ratio = None,
    calibration: CalibrationFile = None,
    samples: Samples = None,
    seq_len: SeqLen = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say which layers can go, in order. The model is only read."""
    settings = _settings(params, overrides, locals())
    import time

    from elder.compression.recipes import apply_method
    from elder.compression.stages import layers_to_remove, select_layers
    from elder.data import choose_blocks
    from elder.model.forward import seed_everything
    from elder.model.load import block_length, load_model
    from elder.selection import get_method

    settings = apply_method(settings, method, overrides)
    get_method(settings.select.method)
    started = time.monotonic()
    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    layers_to_remove(settings.select, loaded.num_layers)
    wanted = settings.calibration
    blocks = choose_blocks(
        Path(wanted.source),
        loaded.tokenizer,
        wanted.samples,
        block_length(wanted.seq_len, loaded.model),
        wanted.seed,
    )
    found = select_layers(loaded, blocks, settings)
    result = {
        "method": settings.select.method,
        "model": model,
        "num_layers": found["num_layers"],
        "removed": found["removed"],
        "scores": found["scores"],
        "tokens": found["tokens"],
        "tokens_seen": found["spent"]["tokens_seen"],
        "search": found["spent"]["search"],
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": found["peak_memory_bytes"],
    }
    show(result, as_json, lambda: _selection_lines(result))


@app.command()
def compress(
    model: ModelName,
    output: Annotated[
        Path, typer.Option(help="Folder for the result; must be absent or empty.")
    ],
    method: SelectionMethod = None,
    compensate: Annotated[
        str | None,
        typer.Option(
            help="none, merge, magnitude or linear: overrides the recipe's compensation."
        ),
    ] = None,
    recover: Annotated[
        str | None, typer.Option(help="none, train or distil: overrides the recipe's recovery.")
    ] = None,
    layers: Layers = None,
    ratio: Ratio = None,
    calibration: CalibrationFile = None,
    samples: Samples = None,
    seq_len: SeqLen = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a shallower model: select, train what the method trains, remove, compensate, recover, save."""
    settings = _settings(params, overrides, locals())
    from elder.compression.compress import compress as run
    from elder.compression.recipes import DEFAULT, apply_method

    settings = apply_method(settings, method, overrides)
    tree = settings.model_dump()
    if compensate is not None:
        tree["compensate"]["method"] = compensate
    if recover is not None:
        tree["recover"]["mode"] = recover
    settings = validate(tree)
    record = run(settings, Path(settings.calibration.source), output, method or DEFAULT)
    result = {**record, "model": model, "output": str(output)}
    show(result, as_json, lambda: _compression_lines(result))


@app.command()
def evaluate(
    model: ModelName,
    text: Annotated[
        Path | None, typer.Option(help="Plain UTF-8 text to measure perplexity on.")
    ] = None,
    seq_len: SeqLen = None,
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval tasks or groups, separated by commas.")
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(help="Folder of task definitions or of local datasets.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each task at most.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity on a text, and lm-eval tasks."""
    settings = _settings(params, overrides, {**locals(), "seq_len": None})
    if text is None and tasks is None:
        raise UserError("nothing to evaluate: give --text FILE, --tasks NAME,NAME or both")
    from elder.evaluation.perplexity import perplexity_of_text, run_tasks
    from elder.model.forward import seed_everything
    from elder.model.load import block_length, load_model

    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    wanted = settings.evaluate
    result: dict[str, Any] = {"model": model, "perplexity": None, "tokens": 0, "tasks": {}}
    if text is not None:
        length = block_length(seq_len or wanted.seq_len, loaded.model)
        result |= perplexity_of_text(loaded, text, length, wanted.max_tokens, wanted.batch)
    if tasks is not None:
        names = tuple(name.strip() for name in tasks.split(",") if name.strip())
        folder = task_data or (Path(wanted.task_data) if wanted.task_data else None)
        result["tasks"] = run_tasks(loaded, names, folder, limit or wanted.limit, wanted.batch)
    show(result, as_json, lambda: _evaluation_lines(result))


@app.command()
def bench(
    model: ModelName,
    against: Annotated[
        str | None, typer.Option(help="A second model; ratios are MODEL over this one.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure prompt and generation speed and memory, of one model or of two side by side."""
    settings = _settings(params, overrides, locals())
    from elder.evaluation.speed import compare, measure
    from elder.model.forward import seed_everything
    from elder.model.load import load_model

    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    result: dict[str, Any] = {"model": model, "ratio": {}}
    if against is None:
        result |= measure(loaded, settings.speed)
    else:
        other = load_model(
            settings.model.model_copy(update={"name": against, "revision": None})
        )
        both = compare(other, loaded, settings.speed)
        result |= {
            "against": against,
            **both["pruned"],
            "ratio": both["ratio"],
            "protocol": both["protocol"],
        }
    show(result, as_json, lambda: [f"{key}: {value}" for key, value in result.items()])


def _settings(path: Path | None, overrides: list[str] | None, given: dict[str, Any]) -> Params:
    calibration = given.get("calibration")
    if calibration is not None and not Path(calibration).is_file():
        raise UserError(
            f"there is no calibration file {str(calibration)!r}; give the path of a plain UTF-8 text"
        )
    prepare_libraries()
    values = {
        "model.name": given["model"],
        "model.device": given.get("device"),
        "model.dtype": given.get("dtype"),
        "select.layers": given.get("layers"),
        "select.ratio": given.get("ratio"),
        "calibration.source": str(calibration) if calibration is not None else None,
        "calibration.samples": given.get("samples"),
        "calibration.seq_len": given.get("seq_len"),
        "calibration.seed": given.get("seed"),
    }
    return read_params(path, overrides, values)


def _selection_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['method']} on {result['model']}: {len(result['removed'])} of {result['num_layers']} layers"
    ]
    for number, one in enumerate(result["scores"]["rounds"], start=1):
        shown = "  ".join("-" if value is None else f"{value:.4f}" for value in one["values"])
        lines.append(f"round {number}, {result['scores']['name']} by layer: {shown}")
    lines.append(f"removed, in order: {', '.join(map(str, result['removed']))}")
    return lines


def _compression_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"removed layers, in order: {', '.join(map(str, result['removed']))} of {result['num_layers']}",
        f"parameters: {result['parameters_before']:,} before, {result['parameters_after']:,} after",
        f"budget: {result['tokens_seen']:,} tokens, {result['optimizer_steps']:,} steps, {result['seconds']:.0f} s",
        f"saved in {result['output']}; its README.md is the model card",
    ]


def _evaluation_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["perplexity"] is not None:
        lines.append(
            f"perplexity {result['perplexity']:.3f} ± {result['stderr']:.3f} on {result['tokens']:,} tokens"
        )
    for name, task in result["tasks"].items():
        lines.append(f"{name}: {task['metric']} {task['value']:.4f} ± {task['stderr']:.4f}")
    return lines
