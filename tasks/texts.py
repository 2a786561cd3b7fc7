"""A dataset, of the Hub or in a folder, as a plain text file: what `elder compare` reads.

A name is a source, and where wanted a configuration and a split: ``Salesforce/wikitext:wikitext-2-raw-v1:test``.
"""

from pathlib import Path

from elder.files import whole_file
from elder.fingerprint import Fingerprint, file_stamps
from elder.params import Params
from tasks import sources
from tasks.documents import Documents, chat_template
from tasks.prepare import (
    EVERYTHING,
    character_budget,
    copy_text,
    load_tokenizer,
    write_documents,
)


def text_of_dataset(params: Params, name: str, folder: Path) -> Path:
    """Return a text file with a dataset's documents, blank lines between them; made once for each commit.

    Args:
        params: the section calibration fills in what the name leaves out.
        name: as above. The calibration source itself is read no further than its blocks need; others are read whole.
        folder: where the text is put.

    Raises:
        UserError: if there is no such dataset, or the Hub cannot be asked.
    """
    source, *rest = [name] if Path(name).exists() else name.split(":")
    given = dict(zip(("config", "split"), rest, strict=False))
    wanted = params.calibration.model_copy(update={"source": source} | given)
    if source != params.calibration.source:
        wanted = wanted.model_copy(update={"revision": None})
    pinned = sources.pin(wanted)
    budget = character_budget(params) if name == params.calibration.source else None
    key = Fingerprint(
        {
            "source": pinned,
            "configuration": wanted.config,
            "split": wanted.split,
            "column": wanted.column,
            "characters": budget,
            # its chat template may bear on the text
            "model": [params.model.name, params.model.revision],
            "model files": file_stamps(Path(params.model.name)),
        }
    )
    readable = "-".join(Path(part).name for part in name.split(":"))
    path = folder / f"{readable}-{key.short}.txt"
    if not path.is_file():
        model = {"revision": params.model.revision}
        chat = chat_template(
            lambda: load_tokenizer(params, model)[0], params.model.name
        )
        # several processes may ask for the same text
        with whole_file(path, shared=True) as new:
            if pinned["kind"] == sources.FILE and not sources.has_rows(source):
                copy_text(source, new, pinned)
            else:
                documents = Documents(wanted, pinned, chat)
                write_documents(new, documents, budget or EVERYTHING)
                documents.settle()
    return path
