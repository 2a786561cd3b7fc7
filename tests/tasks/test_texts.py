"""Datasets as text files for `elder compare`: by configuration and split, whole or as far as the blocks need."""

import json
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.params import Params
from tasks.texts import text_of_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "novel"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [
            json.dumps({"text": f"{split} {n} " + "word " * 20}) for n in range(200)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder


def settings(source: Path) -> Params:
    return Params.model_validate(
        {"calibration": {"source": str(source), "samples": 4, "seq_len": 16}}
    )


def test_an_evaluation_text_is_the_whole_split_that_its_name_says(
    dataset: Path, tmp_path: Path
) -> None:
    path = text_of_dataset(
        settings(dataset), f"{dataset}:default:test", tmp_path / "texts"
    )
    documents = path.read_text().split("\n\n")
    assert len(documents) == 200
    assert documents[3].startswith("test 3 word")
    assert path.name.startswith("novel-default-test-")


def test_the_calibration_text_is_read_no_further_than_its_blocks_need(
    dataset: Path, tmp_path: Path
) -> None:
    path = text_of_dataset(settings(dataset), str(dataset), tmp_path / "texts")
    # 4 x 16 tokens of 5 characters, four times over: 1,280; documents of some 110 characters with a blank line
    assert 1280 <= len(path.read_text()) < 1280 + 120
    before = path.stat().st_mtime_ns
    assert text_of_dataset(settings(dataset), str(dataset), tmp_path / "texts") == path
    assert path.stat().st_mtime_ns == before
    (dataset / "train.jsonl").write_text(json.dumps({"text": "Something else " * 200}))
    assert text_of_dataset(settings(dataset), str(dataset), tmp_path / "texts") != path


def test_unknown_names_are_refused_in_a_sentence(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no calibration text 'nowhere.txt'"):
        text_of_dataset(settings(dataset), "nowhere.txt", tmp_path)
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        text_of_dataset(settings(dataset), f"{dataset}:default:tset", tmp_path)


def test_the_pipelines_command_line_hands_datasets_over(
    dataset: Path, tmp_path: Path
) -> None:
    from elder.cli.compare import texts_as_files
    from flows.cli.app import SERVICES

    plain = tmp_path / "plain.txt"
    plain.write_text("A text.")
    base = settings(dataset)
    wanted = base.evaluate.model_copy(
        update={"in_domain": f"{dataset}:default:test", "out_of_domain": str(plain)}
    )
    found, (calibration,) = texts_as_files(
        SERVICES,
        base.model_copy(update={"evaluate": wanted}),
        [str(dataset)],
        tmp_path / "texts",
    )
    assert Path(found.evaluate.in_domain).read_text().startswith("test 0")
    assert found.evaluate.out_of_domain == str(plain)
    assert Path(calibration).read_text().startswith("train 0")


def test_without_the_pipeline_a_dataset_is_refused_in_a_sentence(
    dataset: Path, tmp_path: Path
) -> None:
    from elder.cli.compare import texts_as_files
    from elder.cli.services import LIBRARY

    wanted = Params.model_validate({"evaluate": {"in_domain": "owner/set:a:b"}})
    with pytest.raises(
        UserError, match=r"no text file 'owner/set:a:b'.*elder\[pipeline\]"
    ):
        texts_as_files(LIBRARY, wanted, [], tmp_path)
