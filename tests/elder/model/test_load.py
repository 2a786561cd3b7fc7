"""Loading: what does not fit, what no machine could build, and what cannot be read."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from elder.errors import UserError
from elder.model.load import load_model
from elder.params import Model


@pytest.mark.parametrize("moment", ["from_pretrained", "to"])
def test_a_model_that_does_not_fit_is_said_in_a_sentence(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        )

    monkeypatch.setattr(LlamaForCausalLM, moment, full)
    sentence = r"^the model of '.*tiny' does not fit into memory \(8 bytes more were asked for\); make it"
    with pytest.raises(UserError, match=sentence):
        load_model(Model(name=str(model_folder), device="cpu"))
