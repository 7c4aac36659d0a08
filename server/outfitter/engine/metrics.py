"""Those of vLLM's own metrics that are passed on. Pure.

They keep their names and labels. What has a series for each loadout that runs is left out.
"""

from collections.abc import Iterator

MAX_LINES = 4000
"""Further ones are left out: scrapes stay small, whatever an engine says."""

COUNTERS = {
    "vllm:num_preemptions": "Requests put back into the queue for want of KV cache.",
    "vllm:prefix_cache_queries": "Prompt tokens looked for in the prefix cache.",
    "vllm:prefix_cache_hits": "Those found there.",
    "vllm:prompt_tokens": "Prompt tokens processed.",
    "vllm:generation_tokens": "Tokens generated.",
    "vllm:request_success": "Requests finished, by reason.",
}
GAUGES = {
    "vllm:num_requests_running": "Requests in the batch.",
    "vllm:num_requests_waiting": "Requests in the queue.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache in use, 0 to 1.",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "As the engine sees it.",
    "vllm:inter_token_latency_seconds": "From token to token.",
    "vllm:e2e_request_latency_seconds": "From arrival to the last token.",
    "vllm:request_queue_time_seconds": "Time in the queue.",
    "vllm:request_prefill_time_seconds": "Time of the prompt.",
    "vllm:request_decode_time_seconds": "Time of the answer.",
    "vllm:iteration_tokens_total": "Tokens of one step.",
}
_FAMILIES = COUNTERS.keys() | GAUGES.keys() | HISTOGRAMS.keys()
SAMPLES = frozenset(
    (
        *(f"{name}_total" for name in COUNTERS),
        *GAUGES,
        *(f"{name}_{end}" for name in HISTOGRAMS for end in ("bucket", "sum", "count")),
    )
)
"""Names of all samples that may occur."""


def kept_metrics(text: str) -> str:
    """The lines of an exposition that are passed on."""
    kept = []
    for line in _kept(text):
        kept.append(line)
        if len(kept) == MAX_LINES:
            break
    return "".join(f"{line}\n" for line in kept)


def markdown_table() -> str:
    """The reference of what is passed on."""
    rows = ["| metric | kind | meaning |", "|---|---|---|"]
    kinds = (("counter", COUNTERS, "_total"), ("gauge", GAUGES, ""), ("histogram", HISTOGRAMS, ""))
    for kind, names, end in kinds:
        rows += [f"| `{name}{end}` | {kind} | {help_} |" for name, help_ in names.items()]
    return "\n".join(rows) + "\n"


def _kept(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("#"):
            words = line.split(" ", 3)
            if len(words) > 2 and words[1] in ("HELP", "TYPE") and _is_family(words[2]):
                yield line
        elif line.partition("{")[0].partition(" ")[0] in SAMPLES:
            yield line


def _is_family(name: str) -> bool:
    """Families of counters are called as their samples in Prometheus' own text format."""
    return name in _FAMILIES or name.removesuffix("_total") in COUNTERS
