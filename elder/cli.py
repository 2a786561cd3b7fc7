"""The command line of the library: select, compress, evaluate, bench. ``python -m elder`` runs it with no pipeline.

Heavy imports stay inside the commands, so that help appears at once.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from elder import compare_cli, stage_cli
from elder.errors import UserError
from elder.params import Params, load_params, validate
from elder.progress import prepare_libraries, say


class PlainErrors(TyperGroup):
    """Commands whose failures end in one sentence: exit 2 for a wrong input or an interruption."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            refuse(f"error: {error}", 2)
        except KeyboardInterrupt:
            refuse("interrupted: nothing was left half-written; the same command goes on from where it was", 2)
        except Exception as error:
            if "No space left on device" not in str(error):  # safetensors wraps it in a type of its own
                raise
            refuse("error: the disk is full; free some space and give the same command again", 2)


def refuse(sentence: str, status: int) -> NoReturn:
    """Say a sentence and exit; a stage leaves it to the flow that started it, which says it once."""
    if "ELDER_ERROR_FILE" in os.environ:
        Path(os.environ["ELDER_ERROR_FILE"]).write_text(sentence.removeprefix("error: "), encoding="utf-8")
    else:
        say(sentence)
    sys.exit(status)


app = typer.Typer(
    cls=PlainErrors,
    help="Make large language models shallower: find the layers a model can do without, remove them, judge the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(stage_cli.app, name="stage", hidden=True)
app.command()(compare_cli.compare)

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder, Hub id (owner/name@revision), s3:// prefix or models:/name@alias."),
]
ParamsFile = Annotated[Path | None, typer.Option("--params", help="Parameter file; params.yaml here, if there is one.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one parameter; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
SelectionMethod = Annotated[
    str | None,
    typer.Option(help="A method's own recipe, as published; by default the default recipe. A wrong name lists all."),
]
Layers = Annotated[int | None, typer.Option(help="Remove exactly this many layers.")]
Ratio = Annotated[float | None, typer.Option(help="Remove round(ratio x layers) layers.")]
CalibrationFile = Annotated[Path | None, typer.Option("--calibration", help="Plain UTF-8 text to calibrate on.")]
Samples = Annotated[int | None, typer.Option(help="Calibration blocks.")]
SeqLen = Annotated[int | None, typer.Option(help="Tokens in a block; by default 2048 or the model's context.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the blocks and of all training.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]


LISTENERS: list[Callable[[Params], None]] = []  # called with each command's parameters; the pipeline adds one


def read_params(path: Path | None, overrides: list[str] | None, values: dict[str, Any]) -> Params:
    """Read parameters: the file, then ELDER_SET, then ``--set``, then the options that have a name of their own.

    ELDER_SET holds overrides separated by spaces, for what belongs to a machine and not to a run: where its store and
    its registry are.
    """
    if path is None and Path("params.yaml").is_file():
        path = Path("params.yaml")
    if values.get("select.ratio") is not None:
        if values.get("select.layers") is not None:
            raise UserError("--layers and --ratio were both given; give one of them")
        overrides = [*(overrides or []), "select.layers=null"]
    overrides = [*os.environ.get("ELDER_SET", "").split(), *(overrides or [])]
    settings = load_params(path, overrides, values)
    for listen in LISTENERS:
        listen(settings)
    return settings


def show(result: dict[str, Any], as_json: bool, lines: Callable[[], list[str]]) -> None:
    """Print a result: one JSON object, or lines for people."""
    print(json.dumps(result, allow_nan=False) if as_json else "\n".join(lines()))


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

    from elder.data import choose_blocks
    from elder.forward import seed_everything
    from elder.methods import get_method
    from elder.model import block_length, load_model
    from elder.recipes import apply_method
    from elder.stages import layers_to_remove, select_layers

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
    output: Annotated[Path, typer.Option(help="Folder for the result; must be absent or empty.")],
    method: SelectionMethod = None,
    compensate: Annotated[
        str | None, typer.Option(help="none, merge, magnitude or linear: overrides the recipe's compensation.")
    ] = None,
    recover: Annotated[str | None, typer.Option(help="none, train or distil: overrides the recipe's recovery.")] = None,
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
    from elder.compress import compress as run
    from elder.recipes import DEFAULT, apply_method

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
    text: Annotated[Path | None, typer.Option(help="Plain UTF-8 text to measure perplexity on.")] = None,
    seq_len: SeqLen = None,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks or groups, separated by commas.")] = None,
    task_data: Annotated[Path | None, typer.Option(help="Folder of task definitions or of local datasets.")] = None,
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
    from elder.evaluate import perplexity_of_text, run_tasks
    from elder.forward import seed_everything
    from elder.model import block_length, load_model

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
    against: Annotated[str | None, typer.Option(help="A second model; ratios are MODEL over this one.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure prompt and generation speed and memory, of one model or of two side by side."""
    settings = _settings(params, overrides, locals())
    from elder.bench import compare, measure
    from elder.forward import seed_everything
    from elder.model import load_model

    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    result: dict[str, Any] = {"model": model, "ratio": {}}
    if against is None:
        result |= measure(loaded, settings.speed)
    else:
        other = load_model(settings.model.model_copy(update={"name": against, "revision": None}))
        both = compare(other, loaded, settings.speed)
        result |= {"against": against, **both["pruned"], "ratio": both["ratio"], "protocol": both["protocol"]}
    show(result, as_json, lambda: [f"{key}: {value}" for key, value in result.items()])


def _settings(path: Path | None, overrides: list[str] | None, given: dict[str, Any]) -> Params:
    calibration = given.get("calibration")
    if calibration is not None and not Path(calibration).is_file():
        raise UserError(f"there is no calibration file {str(calibration)!r}; give the path of a plain UTF-8 text")
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
    lines = [f"{result['method']} on {result['model']}: {len(result['removed'])} of {result['num_layers']} layers"]
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
        lines.append(f"perplexity {result['perplexity']:.3f} ± {result['stderr']:.3f} on {result['tokens']:,} tokens")
    for name, task in result["tasks"].items():
        lines.append(f"{name}: {task['metric']} {task['value']:.4f} ± {task['stderr']:.4f}")
    return lines


def main() -> None:
    """Run the library's own command line."""
    app()
