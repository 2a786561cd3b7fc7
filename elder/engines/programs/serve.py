"""Let llama.cpp continue prompts: a request as JSON on stdin, one line of JSON after ``ANSWER`` on stdout.

Asked: ``file``; ``text``, to be cut into tokens; ``prompts``, lists of token ids; ``new_tokens`` after each, greedily;
``words``, how many tokens the model knows; ``threads``. Answered: ``text`` as token ids, and for each prompt the ids
that follow and the log-probabilities of the first of them.
"""

import json
import sys
import urllib.request
from typing import Any

ANSWER = "elder: "
SPARE = 8  # tokens of context beyond what is read and written


def main(asked: dict[str, Any]) -> None:
    """Answer one request."""
    import xllamacpp

    longest = max(map(len, asked["prompts"])) + asked["new_tokens"] + SPARE
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = asked["file"], longest, 1
    params.cpuparams.n_threads, params.warmup = asked["threads"], False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    greedy = {
        "n_predict": asked["new_tokens"],
        "n_probs": asked["words"],
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    answers = []
    for prompt in asked["prompts"]:
        said = server.handle_completions({"prompt": prompt, **greedy})
        places = said["choices"][0]["logprobs"]["content"]
        first = {one["id"]: one["logprob"] for one in places[0]["top_logprobs"]}
        answers.append({"ids": [place["id"] for place in places], "first": first})
    words = {"content": asked["text"], "add_special": False}
    text = post(f"{server.listening_address}/tokenize", words)["tokens"]
    print(ANSWER + json.dumps({"text": text, "answers": answers}), flush=True)


def post(url: str, value: dict[str, Any]) -> Any:
    """Ask the engine's own server, in this process."""
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(value).encode(), kind)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main(json.load(sys.stdin))
