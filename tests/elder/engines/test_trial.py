"""Whether an engine says what transformers says: the numbers, worked by hand, and how the gate judges them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from elder.engines.llama_cpp import Answer, Request, Said, refuse_other_pattern
from elder.engines.trial import compare, try_engines
from elder.errors import UserError
from elder.evaluation.gate import ENGINES_AGREE
from elder.model.forward import logits_of
from elder.model.load import Loaded, load_model
from elder.params import Gate, Params
from elder.record import EngineTrial, Rule
from tests.elder.evaluation.test_gate import DENSE, GOOD, SPEED, judge, rule_of

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models" / "novels-llama"
TEXT = ROOT / "data" / "held_out.txt"
FULL, SLIDING = "full_attention", ["sliding_attention"]
GOOD_TRIAL = {
    "engine": "llama.cpp",
    "format": "gguf bf16",
    "divergence": 1e-5,
    "largest_difference": 0.04,
    "same_tokens": 128,
    "tokens": 128,
    "same_ids": True,
}


def model() -> Loaded:
    place = {"name": str(MODEL), "dtype": "float32"}
    return load_model(Params().model.model_copy(update=place))


def test_the_numbers_of_a_comparison() -> None:
    loaded = model()

    def ask(request: Request) -> Answer:
        """Answer as the model does, but for the first prompt: half as likely the likeliest token, and wrong ids."""
        said = []
        for number, prompt in enumerate(request.prompts):
            ids, given = [], list(prompt)
            with torch.inference_mode():
                for _ in range(request.new_tokens):
                    last = logits_of(loaded.model, torch.tensor([given]))[0, -1]
                    ids.append(int(last.argmax()))
                    given.append(ids[-1])
                first = logits_of(loaded.model, torch.tensor([prompt]))[0, -1]
            values = first.log_softmax(-1)
            if number == 0:
                values[ids[0]] -= 0.5
                likely.append(first.softmax(-1)[ids[0]].item())
                ids = [-1] * request.new_tokens
            said.append(Said(ids, dict(enumerate(values.tolist()))))
        return Answer(loaded.tokenizer(request.text)["input_ids"], said)

    likely: list[float] = []
    found = compare(loaded, ask, Path("any.gguf"), TEXT)
    assert found.divergence == pytest.approx(0.5 * likely[0] / 8, rel=1e-3)
    assert found.largest_difference == pytest.approx(0.5, rel=1e-3)
    assert (found.same_tokens, found.tokens, found.same_ids) == (112, 128, True)


def judged(trials: list[dict[str, Any]]) -> Rule:
    speed = SPEED | {"engines": trials}
    return rule_of(
        judge(Gate(engines=["llama.cpp"]), DENSE, GOOD, speed, None), "llama.cpp"
    )


def test_the_gate_asks_an_engine() -> None:
    assert judged([GOOD_TRIAL]).passed
    refused = {
        "was not tried in llama.cpp": [],
        "llama.cpp does not serve the model: unknown architecture.": [
            GOOD_TRIAL | {"fault": "unknown architecture", "divergence": None}
        ],
        "exceeds the most allowed": [GOOD_TRIAL | {"divergence": 2 * ENGINES_AGREE}],
        "not a finite number": [GOOD_TRIAL | {"divergence": float("nan")}],
        "cuts a text into other tokens": [GOOD_TRIAL | {"same_ids": False}],
    }
    for sentence, trials in refused.items():
        rule = judged(trials)
        assert not rule.passed
        assert sentence in rule.reason


def test_what_an_engine_refuses_is_the_trials_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELDER_LLAMA_CPP", str(tmp_path / "nowhere"))
    (trial,) = try_engines(("llama.cpp",), model(), MODEL, TEXT, tmp_path)
    assert trial == EngineTrial(
        engine="llama.cpp", format="gguf bf16", fault=trial.fault
    )
    assert "llama.cpp is not in" in str(trial.fault)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_llama_cpp_says_what_transformers_says(tmp_path: Path) -> None:
    """Where ELDER_LLAMA_CPP names the folder of its packages."""
    if not os.environ.get("ELDER_LLAMA_CPP"):
        pytest.skip("ELDER_LLAMA_CPP names no folder with llama.cpp's packages")
    loaded = model()
    (trial,) = try_engines(("llama.cpp",), loaded, MODEL, TEXT, tmp_path)
    assert (trial.fault, trial.same_ids) == (None, True)
    assert abs(trial.divergence or 1) < ENGINES_AGREE / 100
    assert trial.same_tokens == trial.tokens
    # a field that one of the two does not see: the base of the rotary embedding
    loaded.model.model.rotary_emb.inv_freq.mul_(0.5)
    (trial,) = try_engines(("llama.cpp",), loaded, MODEL, TEXT, tmp_path)
    assert trial.divergence is not None
    assert trial.divergence > ENGINES_AGREE


@pytest.mark.parametrize(
    ("fields", "layer"),
    [
        ({"model_type": "gemma3_text", "layer_types": [*SLIDING * 5, FULL] * 2}, None),
        ({"model_type": "gemma3_text", "layer_types": [*SLIDING * 5, FULL, "s"]}, None),
        ({"model_type": "gemma3_text", "layer_types": [*SLIDING * 4, FULL] * 2}, 4),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]}, None),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1]}, 2),
        # kinds that are written into the file
        ({"model_type": "olmo3", "layer_types": [FULL, *SLIDING]}, None),
        ({"model_type": "llama"}, None),
    ],
)
def test_layers_of_other_kinds_than_the_engines_code_has_are_refused(
    tmp_path: Path, fields: dict[str, Any], layer: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if layer is None:
        refuse_other_pattern(tmp_path)
        return
    with pytest.raises(UserError, match=f"of layer {layer} that is not true any more"):
        refuse_other_pattern(tmp_path)
