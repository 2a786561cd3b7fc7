"""The rows of the comparison: the dense model, which is measured once for all runs, and the candidate."""

from elder.device import device_of
from elder.evaluation.protocol import PROTOCOL
from elder.fingerprint import VERSIONS, Fingerprint, package_version, protocol_parts
from elder.record import (
    BUDGET,
    CANDIDATE,
    DENSE,
    CompressionRecord,
    Evaluation,
    Json,
    ModelFacts,
    Row,
    plain,
)
from tasks.run.run import Run
from tasks.stage import evaluate, evaluate_dense


def dense_row(run: Run, key: Fingerprint) -> Row:
    """Return the dense model's row; ``key`` is what its results depend on."""
    return row("dense", DENSE, evaluate_dense(key.digest, run), {}, [])


def candidate_row(run: Run, made: CompressionRecord) -> Row:
    """Measure the shallower model and return its row."""
    evaluation = evaluate(
        run.method, run.model, run.stage_params, run.result("candidate")
    )
    return row(run.method, CANDIDATE, evaluation, plain(made), made.removed)


def row(
    name: str,
    kind: str,
    evaluation: dict[str, Json],
    spent: dict[str, Json],
    removed: list[int],
) -> Row:
    """Return one line of the comparison.

    Args:
        name: of the method.
        kind: dense, candidate or baseline.
        evaluation: what was measured, and under which protocol.
        spent: the budget it took.
        removed: the layers that went, in order.
    """
    tree: dict[str, Json] = {"name": name, "kind": kind, "removed": removed}
    tree |= plain(Evaluation.model_validate(evaluation))
    # Seconds are those of the budget: what evaluating took is no part of it.
    tree |= {key: spent.get(key, 0) for key in BUDGET}
    return Row.model_validate(tree)


def dense_fingerprint(run: Run, model: ModelFacts, tokenizer: str) -> Fingerprint:
    """Return what the dense model's results depend on.

    Args:
        run: the run: protocol, texts and device.
        model: the dense model: its weights, and the dtype that it was loaded in.
        tokenizer: digest of what pins the tokenizer.
    """
    settings = run.for_stages
    parts: dict[str, Json] = {
        "weights": model.digest,
        "tokenizer": tokenizer,
        "dtype": model.dtype,
        "device": device_of(settings.model.device).type,
        "form of the protocol": PROTOCOL,
        "versions": {name: package_version(name) for name in VERSIONS},
    }
    return Fingerprint(parts | protocol_parts(settings, run.root))
