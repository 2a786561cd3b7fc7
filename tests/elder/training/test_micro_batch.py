"""Out of memory halves the blocks that go through a model at once; the batch stays, and so does the result."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elder import params
from elder.compression.layers import select_layers
from elder.errors import UserError
from elder.evaluation.perplexity import losses_of
from elder.evaluation.tasks import run_tasks
from elder.model.layers import LayerControl, find_layers
from elder.model.load import Loaded
from elder.recovery import RECOVERIES, student_of
from elder.selection.layer_weights import pull
from elder.settings import validate
from elder.training import micro_batch, synthesis
from elder.training.checkpoint import Schedule
from elder.training.loop import Batch, TrainingRun, gradients, train
from elder.training.micro_batch import SMALLER, MicroBatch, blocks_to_learn
from elder.training.regularise import Regularised, Turn
from elder.training.synthesis import Writing, synthetic_blocks
from tests.elder.selection.problems import problem

FLOAT = torch.float32
TASKS = Path(__file__).parents[3] / "data" / "tasks"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(micro_batch, "say", lines.append)
    return lines


def narrow(model: Any, most: int) -> list[int]:
    """Let a model's memory hold ``most`` blocks; returns the list of how many it was given each time."""
    given: list[int] = []

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        given.append(len(arguments[0]))
        if given[-1] > most:
            raise RuntimeError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB"
            )

    model.get_input_embeddings().register_forward_pre_hook(look)
    return given


def losses(model: Any, dense: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return every loss that something is trained with."""
    given = {"next_token": 0.25, "hidden": 0.5}
    recover = params.Recover.model_validate({"mode": "distil", "distil": given})
    student = student_of(recover, model, dense, [1, 3])
    return {
        "distil": RECOVERIES.find("distil").function(student),
        "train": RECOVERIES.find("train").function(student),
        "regularise": Regularised(model, [0, 2], params.Regularise(), 0.3, Turn(2)),
    }


@pytest.mark.parametrize("name", ["distil", "train", "regularise"])
def test_the_gradients_of_micro_batches_are_those_of_the_batch(
    trained: nn.Module, llama: Any, text_blocks: Tensor, name: str
) -> None:
    dense = copy.deepcopy(trained)
    del trained.model.layers[3], trained.model.layers[1]
    trained.config.num_hidden_layers = 4
    trained.requires_grad_(True)
    batch = Batch(text_blocks[:5], losses(trained, dense)[name], FLOAT, seed=0)
    whole = gradients(trained, batch, at_once=5)
    expected = [weight.grad.clone() for weight in trained.parameters()]
    # two, two and one block: each weighs by its share
    assert gradients(trained, batch, at_once=2) == pytest.approx(whole, rel=1e-5)
    for weight, gradient in zip(trained.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_run_that_memory_does_not_hold_ends_with_the_same_weights(
    trained: nn.Module, text_blocks: Tensor, said: list[str]
) -> None:
    schedule = Schedule(4, 8, "adamw", 1e-3, True, 0.0, 0.0, seed=3)
    run = TrainingRun("recover", 0, FLOAT)
    start = torch.cat([weight.detach().flatten() for weight in trained.parameters()])
    ends = []
    for most in (8, 3):
        model = copy.deepcopy(trained).requires_grad_(True)
        given = narrow(model, most)
        spent = train(
            model, text_blocks, losses(model, trained)["train"], schedule, run
        )
        assert (spent.optimizer_steps, spent.tokens_seen) == (4, 4 * 8 * 48)
        ends.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    # 8 and 4 blocks do not fit; all four steps then take 2 at once
    assert given == [8, 4] + 4 * [2, 2, 2, 2]
    assert (ends[1] - ends[0]).norm() < 0.01 * (ends[0] - start).norm()
    assert said == [
        "recover with 8 blocks at once does not fit into memory (2.00 GiB more were asked for): it goes on with 4 at "
        "once, and the same batch",
        "recover with 4 blocks at once does not fit into memory (2.00 GiB more were asked for): it goes on with 2 at "
        "once, and the same batch",
    ]


def test_what_an_attempt_left_in_the_weights_does_not_count(
    trained: nn.Module, text_blocks: Tensor, said: list[str]
) -> None:
    trained.requires_grad_(True)
    plain = losses(trained, trained)["train"]
    calls = []

    def full_at_the_second_piece(ids: Tensor) -> Tensor:
        calls.append(len(ids))
        if len(calls) == 2:
            raise MemoryError
        return plain(ids)

    expected = gradients(trained, Batch(text_blocks[:4], plain, FLOAT, 0), 4)
    wanted = trained.lm_head.weight.grad.clone()
    batch = Batch(text_blocks[:4], full_at_the_second_piece, FLOAT, 0)
    found = MicroBatch("recover", 2).attempt(
        lambda size: gradients(trained, batch, size)
    )
    assert calls == [2, 2, 1, 1, 1, 1]
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        trained.lm_head.weight.grad, wanted, rtol=1e-3, atol=1e-6
    )


def test_one_block_that_does_not_fit_ends_in_a_sentence(
    trained: nn.Module, text_blocks: Tensor, said: list[str]
) -> None:
    narrow(trained.requires_grad_(True), 0)
    schedule = Schedule(1, 2, "adamw", 1e-3, True, 0.0, 0.0, seed=3)
    with pytest.raises(UserError) as refused:
        train(
            trained,
            text_blocks,
            losses(trained, trained)["train"],
            schedule,
            TrainingRun("recover", 0, FLOAT),
        )
    assert str(refused.value).startswith(
        "recover, one block at a time, does not fit into memory (2.00 GiB more were asked for); make it need less"
    )
    assert len(said) == 1


def test_selection_evaluation_and_writing_go_on_as_well(
    loaded: Loaded, text_blocks: Tensor, said: list[str]
) -> None:
    settings = validate(
        {"select": {"method": "shortgpt", "layers": 2, "forward_batch": 8}}
    )
    chosen = select_layers(loaded, text_blocks[:16], settings)
    measured = losses_of(loaded, text_blocks[:9], 4)
    tasks = run_tasks(loaded, ["blimp_passive_1"], TASKS, 5, 8)
    given = narrow(loaded.model, 2)
    again = select_layers(loaded, text_blocks[:16], settings)
    assert again.removed == chosen.removed
    assert [line.split(" at once")[0] for line in said] == [
        "selection by shortgpt with 8 blocks",
        "selection by shortgpt with 4 blocks",
    ]
    torch.testing.assert_close(losses_of(loaded, text_blocks[:9], 4), measured)
    # what did not fit is not tried again
    assert given[-6:] == [4, 2, 2, 2, 2, 1]
    assert run_tasks(loaded, ["blimp_passive_1"], TASKS, 5, 8) == tasks
    written = synthetic_blocks(loaded.model, text_blocks[:8], Writing(4, seed=0))
    assert written.shape == (4, 48)
    assert len(said) > 4


def test_layer_weights_are_learnt_a_few_blocks_at_once(
    trained: nn.Module, text_blocks: Tensor
) -> None:
    given = problem(trained, text_blocks, 1, method="elder")
    found = []
    with LayerControl(find_layers(trained)) as control:
        control.weights = torch.ones(6, requires_grad=True)
        for size in (8, 2):
            few = replace(given, forward_batch=size)
            found.append(pull(few, text_blocks[:5], control.weights))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_a_stage_that_was_killed_begins_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MicroBatch("recover", 8).size == 8
    monkeypatch.setenv(SMALLER, "1")
    assert [MicroBatch("recover", size).size for size in (8, 3, 1)] == [4, 1, 1]


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        MicroBatch("recover", 4).attempt(lambda size: size // 0)


@pytest.mark.parametrize(("seq_len", "size"), [(128, 8), (1024, 4), (9000, 1)])
def test_of_long_blocks_fewer_go_through_a_model_at_once(
    seq_len: int, size: int
) -> None:
    assert MicroBatch.of_blocks("selection", 8, seq_len).size == size


@pytest.mark.parametrize(
    ("own", "seq_len", "on_cpu", "size"),
    [(None, 256, True, 4), (None, 1024, True, 2), (None, 9000, True, 1)]
    + [(None, 9000, False, 4), (3, 9000, True, 3)],
)
def test_of_long_blocks_fewer_are_learnt_from_at_once_on_a_cpu(
    own: int | None, seq_len: int, on_cpu: bool, size: int
) -> None:
    settings = params.Recover(batch=4, micro_batch=own)
    assert blocks_to_learn(settings, seq_len, on_cpu) == size


def test_as_many_texts_are_written_at_once_as_their_cache_allows(
    llama: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 32 layers of 32 heads with 128 numbers of 2 bytes, keys and values, 2,048 tokens: the shape of a 7B
    of_7b = 32 * 32 * 128 * 2 * 2 * 2048
    assert synthesis.rows_at_once(2048, of_7b, gpu=80 * 2**30) == 16
    assert synthesis.rows_at_once(2048, 16 * of_7b, gpu=24 * 2**30) == 1
    assert synthesis.rows_at_once(2048, of_7b, gpu=None) == 4
    assert synthesis.rows_at_once(256, 10_000_000, gpu=80 * 10**9) == 1600
    assert synthesis.rows_at_once(256, 10_000_000, gpu=None) == 128
    model = llama()
    config = model.config
    width = config.num_key_value_heads * config.head_dim
    of_text = config.num_hidden_layers * width * 2 * 4 * 32  # float32, 32 tokens
    monkeypatch.setattr(synthesis, "CACHE_AT_ONCE", 3 * of_text)
    rows = []

    def write(_: Any, prompts: torch.Tensor, length: int, **__: Any) -> torch.Tensor:
        rows.append(len(prompts))
        return prompts.new_zeros(len(prompts), length)

    monkeypatch.setattr(synthesis, "continue_texts", write)
    blocks = torch.randint(0, config.vocab_size, (4, 32))
    synthesis.synthetic_blocks(model, blocks, Writing(8, seed=0))
    assert rows == [3, 3, 2]
