"""Perplexity by hand, lm-eval on the bundled tasks, and what makes two results comparable."""

import copy
import json
import math
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from elder.errors import UserError
from elder.evaluation import perplexity as evaluation
from elder.evaluation.evaluate import evaluate, task_mean
from elder.evaluation.perplexity import perplexity, perplexity_of_text
from elder.evaluation.protocol import protocol
from elder.evaluation.tasks import headline, run_tasks
from elder.model.load import Loaded
from elder.params import Evaluate
from elder.record import Mean, Perplexity, TaskResult, plain

TASKS = Path(__file__).parents[3] / "data" / "tasks"
TEXT = "It was the best of times, it was the worst of times. " * 4  # 212 bytes
VOCABULARY = 257  # the bytes, and the end of a text


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models on a busy machine spend their time waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Loaded(
        LlamaForCausalLM(config).eval(), tokenizer, "tiny", None, torch.float32
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> NoReturn:
        tried.append(args)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    loaded: Loaded,
) -> None:
    blind = copy.deepcopy(loaded)
    torch.nn.init.zeros_(blind.model.lm_head.weight)
    found = perplexity(blind, torch.arange(60).view(5, 12), batch=2)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-5)
    assert found.nll == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert found.stderr == pytest.approx(0, abs=1e-3)
    assert (found.tokens, found.blocks) == (60, 5)


def test_perplexity_and_its_standard_error_by_hand(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    # block i has loss i
    monkeypatch.setattr(
        evaluation, "block_losses", lambda _, ids, __, given: ids[:, 0].double()
    )
    found = perplexity(loaded, torch.tensor([[1, 0], [2, 0], [3, 0]]), batch=2)
    # mean 2; spread with n - 1 is 1; standard error of the mean 1 / sqrt(3), of exp(mean) e^2 times that
    assert found.perplexity == pytest.approx(math.exp(2))
    assert found.stderr == pytest.approx(math.exp(2) / math.sqrt(3))
    assert perplexity(loaded, torch.tensor([[1, 0]]), batch=2).stderr is None


def test_an_infinite_perplexity_is_a_result(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evaluation, "block_losses", lambda _, ids, __, given: ids[:, 0].double()
    )
    # exp(1000) is too large
    found = perplexity(loaded, torch.tensor([[1000, 0]]), batch=2)
    assert found == Perplexity(
        perplexity=math.inf, stderr=None, nll=1000.0, tokens=2, blocks=1
    )


def test_perplexity_of_text_counts_whole_blocks(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    whole = perplexity_of_text(loaded, path, 16, None, 4)
    assert (whole.blocks, whole.tokens) == (13, 208)  # 212 tokens of one byte
    assert perplexity_of_text(loaded, path, 16, 70, 4).blocks == 4
    assert perplexity_of_text(loaded, path, 16, None, 1).nll == pytest.approx(
        whole.nll, rel=1e-6
    )


def accuracy_by_hand(loaded: Loaded, rows: list[dict]) -> float:
    def score(sentence: str) -> float:
        ids = torch.tensor([[0, *loaded.tokenizer(sentence)["input_ids"]]])
        with torch.no_grad():
            logs = loaded.model(ids).logits[0, :-1].log_softmax(-1)
        return float(logs.gather(1, ids[0, 1:, None]).sum())

    return sum(
        score(row["sentence_good"]) > score(row["sentence_bad"]) for row in rows
    ) / len(rows)


def test_tasks_match_a_count_by_hand_and_stay_silent(
    loaded: Loaded, capfd: pytest.CaptureFixture[str], no_network: list
) -> None:
    here = Path.cwd()
    found = run_tasks(loaded, ["blimp"], TASKS, 5, 8)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
    assert no_network == []
    assert Path.cwd() == here
    assert loaded.tokenizer.pad_token is None
    assert len(found) == 14
    task = found["blimp_passive_1"]
    with (TASKS / "blimp" / "passive_1.jsonl").open() as handle:
        rows = [json.loads(line) for line, _ in zip(handle, range(5), strict=False)]
    value = accuracy_by_hand(loaded, rows)
    assert task.value == pytest.approx(value)
    assert task.stderr == pytest.approx(math.sqrt(value * (1 - value) / 4))
    assert (task.metric, task.version, task.higher_is_better) == ("acc", 1.0, True)
    assert run_tasks(loaded, ["blimp_passive_1"], TASKS, 5, 8) == {
        "blimp_passive_1": task
    }


def test_a_built_in_task_reads_a_folder_named_like_its_dataset(
    loaded: Loaded, tmp_path: Path, no_network: list
) -> None:
    folder = tmp_path / "baber" / "piqa"
    folder.mkdir(parents=True)
    rows = [
        {"goal": f"Goal {n}", "sol1": "Do it.", "sol2": "Do it not.", "label": n % 2}
        for n in range(4)
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = run_tasks(loaded, ["piqa"], tmp_path, None, 8)
    assert found["piqa"].metric == "acc"
    # the labels alternate and the answers do not differ
    assert found["piqa"].value == 0.5
    assert no_network == []


def test_unknown_tasks_name_the_nearest(loaded: Loaded) -> None:
    with pytest.raises(UserError, match="no task 'blimpp'.* did you mean 'blimp'"):
        run_tasks(loaded, ["blimpp"], TASKS, 5, 8)
    with pytest.raises(UserError, match="no folder of task data 'nowhere'"):
        run_tasks(loaded, ["blimp"], Path("nowhere"), 5, 8)


def test_no_tasks_need_no_lm_eval_and_some_do(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    assert run_tasks(loaded, [], None, None, 8) == {}
    with pytest.raises(UserError, match="pip install 'lm-eval"):
        run_tasks(loaded, ["blimp"], TASKS, 5, 8)


def task(value: float | None, stderr: float | None, better: bool = True) -> TaskResult:
    return TaskResult(metric="m", value=value, stderr=stderr, higher_is_better=better)


def test_task_mean_by_hand() -> None:
    wikitext = task(30.0, None, better=False)
    tasks = {"a": task(0.5, 0.03), "b": task(0.7, 0.04), "wikitext": wikitext}
    # sqrt(0.03^2 + 0.04^2) / 2 = 0.025
    mean = task_mean(tasks)
    assert mean is not None
    assert (mean.value, mean.stderr) == (pytest.approx(0.6), pytest.approx(0.025))
    assert task_mean({}) is None
    assert task_mean({"wikitext": wikitext}) is None


def test_a_task_without_a_standard_error_leaves_the_mean_without_one() -> None:
    mean = task_mean({"a": task(0.5, None), "b": task(0.75, 0.04)})
    assert mean == Mean(value=0.625, stderr=None)
    assert task_mean({"a": task(None, None), "b": task(0.75, 0.04)}) == Mean(value=None)


def test_a_single_item_has_a_value_and_no_standard_error(loaded: Loaded) -> None:
    tasks = run_tasks(loaded, ["blimp_passive_1"], TASKS, 1, 8)
    one = tasks["blimp_passive_1"]
    assert one.value in (0.0, 1.0)
    assert one.stderr is None
    assert task_mean(tasks) == Mean(value=one.value, stderr=None)


def test_the_headline_is_acc_or_the_first_with_an_error() -> None:
    both = {
        "alias": "x",
        "acc_norm,none": 0.4,
        "acc_norm_stderr,none": 0.1,
        "acc,none": 0.3,
        "acc_stderr,none": 0.2,
    }
    assert headline(both, {}).metric == "acc"
    texts = {
        "word_perplexity,none": 30.0,
        "word_perplexity_stderr,none": "N/A",
        "f1,x": 0.4,
        "f1_stderr,x": 0.1,
    }
    assert headline(texts, {}) == TaskResult(
        metric="f1", value=0.4, stderr=0.1, version=None, higher_is_better=True
    )
    del texts["f1,x"], texts["f1_stderr,x"]
    assert headline(texts, {"word_perplexity": False}, 2.0) == TaskResult(
        metric="word_perplexity",
        value=30.0,
        stderr=None,
        version=2.0,
        higher_is_better=False,
    )


def test_protocol_changes_with_what_matters_only(
    loaded: Loaded, tmp_path: Path
) -> None:
    text, data = tmp_path / "text.txt", tmp_path / "tasks"
    text.write_text(TEXT)
    data.mkdir()
    (data / "a.yaml").write_text("task: a")
    texts = {"in_domain": str(text), "out_of_domain": str(text)}
    settings = Evaluate(tasks=("a",), task_data=str(data), **texts)

    def digest(
        model: Loaded = loaded, chosen: Evaluate = settings, seq_len: int = 16
    ) -> str:
        return protocol(chosen, model, seq_len).digest

    first = digest()
    other = copy.deepcopy(loaded)
    torch.nn.init.zeros_(other.model.lm_head.weight)
    other.tokenizer.pad_token = "<|end|>"
    other.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert digest(other) == first
    other.dtype = torch.bfloat16
    digests = {first, digest(other), digest(seq_len=8)}
    digests |= {
        digest(chosen=settings.model_copy(update={"limit": 5})),
        digest(chosen=Evaluate(tasks=(), **texts)),
    }
    (data / "a.yaml").write_text("task: b")
    digests.add(digest())
    text.write_text(TEXT + ".")
    digests.add(digest())
    assert len(digests) == 7
    text.unlink()
    with pytest.raises(UserError, match="no text file"):
        digest()


def test_evaluate_gives_all_of_it_as_json(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    settings = Evaluate(
        in_domain=str(path),
        out_of_domain=str(path),
        max_tokens=64,
        tasks=("blimp_passive_1", "blimp_adjunct_island"),
        task_data=str(TASKS),
        limit=3,
    )
    found = evaluate(loaded, settings, 16)
    json.dumps(plain(found), allow_nan=False)
    assert found.perplexity["in_domain"] == found.perplexity["out_of_domain"]
    assert found.perplexity["in_domain"].tokens == 64
    assert set(found.tasks) == {"blimp_passive_1", "blimp_adjunct_island"}
    assert found.task_mean == task_mean(found.tasks)
    assert found.protocol["limit"] == 3
    assert found.protocol_digest == protocol(settings, loaded, 16).digest
    assert found.parameters == sum(
        weight.numel() for weight in loaded.model.parameters()
    )
    assert found.seconds > 0
