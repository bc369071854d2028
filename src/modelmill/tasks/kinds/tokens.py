"""tokens: a text that grows token by token."""

from modelmill.tasks.kinds.base import JSON, OutputKind

EVENTS = "text/event-stream"
OUTPUT = OutputKind(
    name="tokens",
    meaning="a text, which may be streamed token by token",
    media=(JSON, EVENTS),
    shown="text",
    example=lambda: {
        "generated_text": " stays with you.",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
        },
    },
)
