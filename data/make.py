"""Make the bundled texts and BLiMP tasks from their sources; run once, the results are part of the repository.

    python data/make.py --books BOOKS --blimp BLIMP

BOOKS holds the novels as plain text, one paragraph a line; BLIMP the paradigms as JSON lines. The table that this
prints belongs in data/README.md.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
HELD_OUT = (
    "emma",
    "the-adventures-of-sherlock-holmes",
)  # never seen by the reference model
OUT_OF_DOMAIN = "the-adventures-of-sherlock-holmes"
RESERVE = 0.02  # the end of each novel that models/train.py leaves out
CALIBRATION_SHARE = (
    0.65  # of each reserved end; the rest is the in-domain evaluation text
)
END_MATTER = (
    "THE END",
    "FOOTNOTES",
)  # what follows is by editors and transcribers, not by the novelist

PAIRS, SEED = 100, 0
PARADIGMS = (
    "adjunct_island",
    "anaphor_gender_agreement",
    "anaphor_number_agreement",
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_with_adjective_1",
    "existential_there_object_raising",
    "existential_there_quantifiers_1",
    "irregular_past_participle_verbs",
    "irregular_plural_subject_verb_agreement_2",
    "only_npi_licensor_present",
    "passive_1",
    "principle_A_case_2",
    "regular_plural_subject_verb_agreement_1",
    "wh_questions_object_gap",
)

TEMPLATE = """\
# What all paradigms share; the same protocol as lm-evaluation-harness's own blimp tasks.
# Paths of data_files are relative to this folder's parent, which is the working directory while tasks are loaded.
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def reserved_lines(text: str) -> list[str]:
    """Return the whole lines of the last 2 % of a novel, up to its end matter."""
    lines = text[int(len(text) * (1 - RESERVE)) :].splitlines()[1:]
    stop = next(
        (i for i, line in enumerate(lines) if line.startswith(END_MATTER)), len(lines)
    )
    return [line for line in lines[:stop] if line.strip()]


def split_lines(lines: list[str]) -> tuple[str, str]:
    """Cut lines in two at the line end nearest after the calibration share of their characters."""
    goal, size, cut = CALIBRATION_SHARE * sum(map(len, lines)), 0, 0
    while size < goal:
        size += len(lines[cut])
        cut += 1
    return "\n".join(lines[:cut]) + "\n", "\n".join(lines[cut:]) + "\n"


def write_texts(books: Path) -> None:
    """Write the calibration text and the two evaluation texts."""
    novels = [path for path in sorted(books.glob("*.txt")) if path.stem not in HELD_OUT]
    parts = [
        split_lines(reserved_lines(path.read_text(encoding="utf-8"))) for path in novels
    ]
    (HERE / "calibration.txt").write_text(
        "\n".join(first for first, _ in parts), encoding="utf-8"
    )
    (HERE / "in_domain.txt").write_text(
        "\n".join(second for _, second in parts), encoding="utf-8"
    )
    (HERE / "held_out.txt").write_bytes((books / f"{OUT_OF_DOMAIN}.txt").read_bytes())


def write_paradigm(source: Path, folder: Path) -> None:
    """Write a seeded choice of pairs, in their original order, and the task definition beside it."""
    rows = [
        json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()
    ]
    chosen = sorted(
        random.Random(f"{SEED} {source.stem}").sample(range(len(rows)), PAIRS)
    )
    fields = ("sentence_good", "sentence_bad", "linguistics_term", "pairID")
    lines = [
        json.dumps({field: rows[i][field] for field in fields}, ensure_ascii=False)
        for i in chosen
    ]
    (folder / source.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{source.stem}.yaml").write_text(
        f"include: _template_yaml\ntask: blimp_{source.stem}\n"
        f"dataset_kwargs:\n  data_files:\n    test: blimp/{source.name}\n"
    )


def write_tasks(blimp: Path) -> None:
    """Write the paradigms, their common template and the group that takes their mean."""
    folder = HERE / "tasks" / "blimp"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARADIGMS:
        write_paradigm(blimp / f"{name}.jsonl", folder)
    (folder / "_template_yaml").write_text(TEMPLATE)
    members = "".join(f"  - blimp_{name}\n" for name in PARADIGMS)
    (folder / "_blimp.yaml").write_text(
        f"group: blimp\ntask:\n{members}aggregate_metric_list:\n"
        "  - metric: acc\n    aggregation: mean\n    weight_by_size: true\nmetadata:\n  version: 1.0\n"
    )


def print_table() -> None:
    """Print name, bytes and sha256 of every data file as rows of a Markdown table."""
    for path in [*sorted(HERE.glob("*.txt")), *sorted(HERE.glob("tasks/blimp/*"))]:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        print(
            f"| `{path.relative_to(HERE).as_posix()}` | {len(content):,} | `{digest}` |"
        )


def main() -> None:
    """Parse the arguments and write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--books", type=Path, required=True, help="folder of the 15 novels, UTF-8 .txt"
    )
    parser.add_argument(
        "--blimp", type=Path, required=True, help="folder of BLiMP's .jsonl files"
    )
    args = parser.parse_args()
    write_texts(args.books)
    write_tasks(args.blimp)
    print_table()


if __name__ == "__main__":
    main()
