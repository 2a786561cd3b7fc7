"""``elder export``: a model as a file for an engine that serves it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from elder.cli.options import CommonOptions, ModelName
from elder.cli.output import show
from elder.cli.services import services_of
from elder.engines import llama_cpp
from elder.errors import UserError
from elder.record import Plain


class ExportResult(Plain):
    """The file that was written; ``dtype`` is the number format of its matrices."""

    model: str
    format: str
    dtype: str
    output: str
    bytes: int
    sha256: str

    def lines(self) -> list[str]:
        """Say it for people."""
        size = f"{self.bytes / 1e6:.1f} MB"
        return [f"{self.model} as {self.format}, {self.dtype}: {self.output}, {size}"]


def export(
    ctx: typer.Context,
    model: ModelName,
    *,
    output: Annotated[Path, typer.Option(help="The file to write; must be absent.")],
    format: Annotated[
        Literal["gguf"], typer.Option(help="gguf: for llama.cpp.")
    ] = "gguf",
    dtype: Annotated[
        str,
        typer.Option(
            help=f"Number format: {', '.join(llama_cpp.TYPES)}; auto: the model's own."
        ),
    ] = "auto",
    common: CommonOptions,
) -> None:
    """Write a model, NAME@ALIAS of the registry too, as one file for an engine that serves it."""
    from elder.model.check import read_config

    if output.exists():
        raise UserError(f"the output {str(output)!r} is there already; name a new file")
    llama_cpp.check_type(dtype)
    llama_cpp.place()
    settings = common.settings({"model.name": _registered(model)})
    source = Path(services_of(ctx).with_local_model(settings).model.name)
    if not source.is_dir():
        raise UserError(
            f"only a model in a folder or in the registry can be exported, not {model!r}; compress or download it first"
        )
    read_config(source)
    kind = llama_cpp.own_type(source) if dtype == "auto" else dtype
    digest = llama_cpp.export_gguf(source, output, kind)
    result = ExportResult(
        model=model,
        format=format,
        dtype=kind,
        output=str(output),
        bytes=output.stat().st_size,
        sha256=digest,
    )
    show(result, common.as_json, result.lines)


def _registered(name: str) -> str:
    """Return a registered model's whole name for NAME@ALIAS: a Hub id has an owner, and a folder is there."""
    short = "@" in name and ":" not in name and "/" not in name
    return f"models:/{name}" if short and not Path(name).exists() else name
