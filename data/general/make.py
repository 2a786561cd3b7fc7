"""Make the texts and task items of this folder from their sources; run once, the results are part of the repository.

    python data/general/make.py --wikitext WIKITEXT --lm-eval LM_EVAL

WIKITEXT holds WikiText-2 as ``valid.txt`` and ``test.txt``; LM_EVAL a folder for each task, with the split that lm-eval
judges by as JSON lines. The table that this prints belongs in README.md beside this file.
"""

import argparse
import hashlib
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).parent
ARTICLE = re.compile(
    r"^ = [^=].* = \n", re.MULTILINE
)  # its title; sections have more =
TEXTS = {
    "calibration.txt": ("valid.txt", 400_000),
    "in_domain.txt": ("test.txt", 200_000),
}
ITEMS, SEED = 100, 0
TASKS = {
    "arc_challenge": "test.jsonl",
    "arc_easy": "test.jsonl",
    "lambada_openai": "test.jsonl",
    "piqa": "validation.jsonl",
    "winogrande": "validation.jsonl",
}


def first_articles(text: str, characters: int) -> str:
    """Return whole articles from the start of a text, as many as hold that many characters."""
    starts = [match.start() for match in ARTICLE.finditer(text)]
    end = next(start for start in starts if start >= characters)
    return text[starts[0] : end]


def write_texts(wikitext: Path) -> None:
    """Write the calibration text and the evaluation text."""
    for name, (source, characters) in TEXTS.items():
        text = (wikitext / source).read_text(encoding="utf-8")
        (HERE / name).write_text(first_articles(text, characters), encoding="utf-8")


def write_tasks(lm_eval: Path) -> None:
    """Write a seeded choice of each task's items, in their original order."""
    for task, split in TASKS.items():
        lines = (lm_eval / task / split).read_text(encoding="utf-8").splitlines()
        chosen = random.Random(f"{SEED} {task}").sample(range(len(lines)), ITEMS)
        folder = HERE / "tasks" / task
        folder.mkdir(parents=True, exist_ok=True)
        items = [json.loads(lines[index]) for index in sorted(chosen)]
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (folder / split).write_text(text, encoding="utf-8")


def print_table() -> None:
    """Print name, bytes and sha256 of every data file as rows of a Markdown table."""
    for path in [*sorted(HERE.glob("*.txt")), *sorted(HERE.glob("tasks/*/*.jsonl"))]:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = path.relative_to(HERE).as_posix()
        print(f"| `{name}` | {len(content):,} | `{digest}` |")


def main() -> None:
    """Parse the arguments and write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wikitext", type=Path, required=True, help="WikiText-2")
    parser.add_argument(
        "--lm-eval", type=Path, required=True, help="tasks, a folder each"
    )
    args = parser.parse_args()
    write_texts(args.wikitext)
    write_tasks(args.lm_eval)
    print_table()


if __name__ == "__main__":
    main()
