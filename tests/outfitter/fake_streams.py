"""What vLLM 0.32 writes: the events of completions and chats, with usage, and its metrics."""

import json
from collections.abc import Iterator

STAMP = {"system_fingerprint": "vllm-0.32.0-0a1b2c3d"}


def events(path: str, body: dict, prompt: str) -> Iterator[bytes]:
    """A stream as vLLM 0.32 writes it, usage included where it is asked for.

    Its fingerprint stands in the usage, and without one in the last event of each choice.
    """
    options = body.get("stream_options") or {}
    asked = bool(options.get("include_usage"))
    is_continuous = asked and bool(options.get("continuous_usage_stats"))
    model, words = body["model"], ("one", f'"model":"{body["model"]}"', "three")
    if path == "/v1/chat/completions":
        yield event(chunk(path, model, "", usage(prompt, 0) if is_continuous else None))
    for count, word in enumerate(words, 1):
        is_last = count == len(words)
        told = usage(prompt, count) if is_continuous else None
        yield event(chunk(path, model, word, told, is_last=is_last, is_stamped=not asked))
    if asked:
        told = {**usage(prompt, len(words)), "prompt_tokens_details": {"cached_tokens": 1}}
        fields = {**head(path, model), "choices": [], "usage": told, **STAMP}
        yield event(json.dumps(fields, separators=(",", ":")))


def event(fields: str) -> bytes:
    return b"data: " + fields.encode() + b"\n\n"


def chunk(
    path: str,
    model: str,
    word: str,
    told: dict | None = None,
    *,
    index: int = 0,
    is_last: bool = False,
    is_stamped: bool = False,
) -> str:
    """One event; without a word, that with which a chat begins."""
    choice: dict = {"index": index, "text": word}
    if path == "/v1/chat/completions":
        delta = {"content": word} if word else {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta}
    choice |= {"logprobs": None, "finish_reason": "stop" if is_last else None}
    fields = {**head(path, model), "choices": [choice]}
    if told is not None:
        fields["usage"] = told
    if is_last and is_stamped:
        fields |= STAMP
    return json.dumps(fields, separators=(",", ":"))


def head(path: str, model: str) -> dict:
    is_chat = path == "/v1/chat/completions"
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": model}


def usage(prompt: str, completion: int) -> dict:
    """A word is a token."""
    asked = len(prompt.split())
    return {
        "prompt_tokens": asked,
        "total_tokens": asked + completion,
        "completion_tokens": completion,
    }


METRICS = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 7.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base-model"} 3.0
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="base-model"} 40.0
# HELP vllm:prefix_cache_hits_created Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_created gauge
vllm:prefix_cache_hits_created{engine="0",model_name="base-model"} 1.7e+09
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="8",running_lora_adapters="tv:0a",waiting_lora_adapters=""} 1.7e+09
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="base-model"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="base-model"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="base-model"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="base-model"} 0.5
"""
