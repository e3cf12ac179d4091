"""vLLM in a process of its own: run by the Python that has vLLM, which may have nothing of this project.

Standard library and vLLM only. A request is one line of JSON on stdin, its reply one line of JSON on what was stdout.
The first request has the arguments of `vllm.LLM`; its reply is {"ready": vLLM's version}. Every other one is

    {"adapter": null or {"number": int, "folder": str}, "sampling": arguments that all its SamplingParams share,
     "temperature": of the samples, "prompts": [{"tokens": [int], "seeds": [a sample's seed, ...]}]}

and its reply {"answers": for each prompt the greedy answer, then one a seed: [{"tokens": [int], "ended": bool}]}. What
fails is answered by {"error": "Type: text"}, and ends the process. It also ends, at once, when stdin does: when the
evaluation that started it is gone, however that ended.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
from typing import Any, TextIO


def main() -> int:
    requests, replies = _requests(), _replies()
    try:
        import vllm
        from vllm.lora.request import LoRARequest

        llm = vllm.LLM(**requests.get())
        _reply(replies, {"ready": vllm.__version__})
        while True:
            request = requests.get()
            adapter = request["adapter"]
            # vLLM keeps adapters, and what prompts gave, by the number: a number is never used for another adapter.
            lora = (
                LoRARequest(f"adapter-{adapter['number']}", adapter["number"], adapter["folder"]) if adapter else None
            )
            _reply(replies, {"answers": _answers(vllm, llm, lora, request)})
    except BaseException as error:  # SystemExit, too: vLLM leaves by it where it cannot start
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        _reply(replies, {"error": f"{type(error).__name__}: {error}"})
        raise


def _answers(vllm: Any, llm: Any, lora: Any, request: dict[str, Any]) -> list[list[dict[str, Any]]]:
    prompts: list[dict[str, list[int]]] = []
    sampling: list[Any] = []
    for prompt in request["prompts"]:
        for seed in (None, *prompt["seeds"]):
            how = {"temperature": 0.0} if seed is None else {"temperature": request["temperature"], "seed": seed}
            prompts.append({"prompt_token_ids": prompt["tokens"]})
            sampling.append(vllm.SamplingParams(**request["sampling"], **how))
    outputs = iter(llm.generate(prompts, sampling, lora_request=lora, use_tqdm=False))
    return [[_answer(next(outputs)) for _ in range(1 + len(prompt["seeds"]))] for prompt in request["prompts"]]


def _answer(output: Any) -> dict[str, Any]:
    (made,) = output.outputs
    if made.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"an answer ended by {made.finish_reason!r}")
    return {"tokens": list(made.token_ids), "ended": made.finish_reason == "stop"}


def _requests() -> queue.SimpleQueue[Any]:
    """The requests, read by a thread, so that the end of stdin is seen while the model loads or answers."""
    stream = os.fdopen(os.dup(0), encoding="utf-8")
    _point(0, os.devnull)  # what vLLM starts must not read requests
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            found.put(json.loads(line))
        _remove_own_folder()
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return found


def _remove_own_folder() -> None:
    """The evaluation made it for this process, and may have been killed."""
    folder = os.path.dirname(os.path.abspath(__file__))
    if os.path.basename(folder).startswith("vllm-worker-"):
        shutil.rmtree(folder, ignore_errors=True)


def _replies() -> TextIO:
    """Where replies go; what anybody else prints goes to the log, which is stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _point(number: int, path: str) -> None:
    opened = os.open(path, os.O_RDONLY)
    os.dup2(opened, number)
    os.close(opened)


def _reply(replies: TextIO, reply: dict[str, Any]) -> None:
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    sys.exit(main())
