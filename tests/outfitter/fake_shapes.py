"""What the stand-in engine answers on each route: whole answers, and the events of streams."""

import json


def prompt_of(body: dict) -> str:
    """The text of a request of any of the routes."""
    found = body.get("prompt") or body.get("input") or body.get("messages")
    while isinstance(found, list):
        found = found[-1] if found else ""
        found = found.get("content", found.get("text", "")) if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""


def sse(event: dict, is_named: bool) -> bytes:
    name = f"event: {event['type']}\n" if is_named else ""
    return f"{name}data: {dump(event)}\n\n".encode()


def dump(fields: dict) -> str:
    return json.dumps(fields, separators=(",", ":"))


USAGE = {
    "usage": {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
}


class Shape:
    """Completions: the simplest shape of answers and events."""

    is_named = False

    def head(self, body: dict) -> dict:
        fields = {"id": "cmpl-1", "object": "text_completion", "created": 1}
        return {**fields, "model": body["model"]}

    def whole(self, body: dict, text: str) -> dict:
        choices = [
            {"index": i, "text": text, "finish_reason": "stop"} for i in range(body.get("n") or 1)
        ]
        return {**self.head(body), "choices": choices, **USAGE}

    def begin(self, body: dict) -> list[dict]:
        return []

    def part(self, body: dict, word: str) -> dict:
        choices = [{"index": 0, "text": word, "finish_reason": None}]
        return {**self.head(body), "choices": choices}

    def end(self, body: dict) -> list[dict]:
        return []


class Chat(Shape):
    def head(self, body: dict) -> dict:
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1} | {
            "model": body["model"]
        }

    def whole(self, body: dict, text: str) -> dict:
        message: dict = {"role": "assistant", "content": text, "refusal": None}
        if body.get("tools") and body.get("tool_choice") not in (None, "auto", "none"):
            call = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
            calls = [{"id": "call-1", "type": "function", "function": call}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        one = {"message": message, "logprobs": None, "finish_reason": "stop"}
        choices = [{"index": i, **one} for i in range(body.get("n") or 1)]
        return {**self.head(body), "choices": choices, **USAGE}

    def part(self, body: dict, word: str) -> dict:
        choices = [{"index": 0, "delta": {"content": word}, "finish_reason": None}]
        return {**self.head(body), "object": "chat.completion.chunk", "choices": choices}


class Responses(Shape):
    is_named = True

    def whole(self, body: dict, text: str) -> dict:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        message = {"id": "msg-1", "type": "message", "role": "assistant", "content": content}
        usage = {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}
        return {
            "id": "resp_1",
            "created_at": 1,
            "instructions": None,
            "model": body["model"],
            "object": "response",
            "output": [{**message, "status": "completed"}] if text else [],
            "tools": [{"type": "function", "name": "x", "parameters": {"model": "kept"}}],
            "usage": usage,
        }

    def begin(self, body: dict) -> list[dict]:
        item = {"id": "msg-1", "type": "message", "role": "assistant", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        return [
            {"response": self.whole(body, ""), "type": "response.created"},
            {"item": item, "output_index": 0, "type": "response.output_item.added"},
            {
                "part": part,
                "item_id": "msg-1",
                "output_index": 0,
                "content_index": 0,
                "type": "response.content_part.added",
            },
        ]

    def part(self, body: dict, word: str) -> dict:
        fields = {"content_index": 0, "item_id": "msg-1", "output_index": 0, "logprobs": []}
        return {"delta": word, **fields, "type": "response.output_text.delta"}

    def end(self, body: dict) -> list[dict]:
        return [{"response": self.whole(body, "all"), "type": "response.completed"}]


class Messages(Shape):
    is_named = True

    def whole(self, body: dict, text: str) -> dict:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text}] if text else [],
            "model": body["model"],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 2, "output_tokens": 3},
        }

    def begin(self, body: dict) -> list[dict]:
        block = {"type": "text", "text": ""}
        return [
            {"type": "message_start", "message": self.whole(body, "")},
            {"type": "content_block_start", "index": 0, "content_block": block},
        ]

    def part(self, body: dict, word: str) -> dict:
        delta = {"type": "text_delta", "text": word}
        return {"type": "content_block_delta", "index": 0, "delta": delta}

    def end(self, body: dict) -> list[dict]:
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        usage = {"input_tokens": 2, "output_tokens": 3}
        return [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": delta, "usage": usage},
            {"type": "message_stop"},
        ]


class Tokens(Shape):
    def whole(self, body: dict, text: str) -> dict:
        if "tokens" in body:
            return {"prompt": "".join(map(chr, body["tokens"]))}
        found = list(map(ord, prompt_of(body)))
        return {"count": len(found), "max_model_len": 64, "tokens": found, "seen": body}


class Count(Shape):
    def whole(self, body: dict, text: str) -> dict:
        return {"input_tokens": len(prompt_of(body))}


SHAPES = {
    "/v1/completions": Shape(),
    "/v1/chat/completions": Chat(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
    "/v1/messages/count_tokens": Count(),
    "/tokenize": Tokens(),
    "/detokenize": Tokens(),
}
