"""The OpenAI API, as far as there is something to answer with: models, completions, chat, images,
audio and embeddings.

It owns `/v1`, which KServe v1 shares: the list of models satisfies clients of both, and so does
every error.
"""

from modelmill.protocols.openai import audio, embeddings, images, models, text
from modelmill.protocols.openai.errors import error

__all__ = ["NAME", "PREFIX", "ROUTES", "error"]
NAME = "openai"
PREFIX = "/v1"
ROUTES = [
    *models.ROUTES,
    *images.ROUTES,
    *text.ROUTES,
    *audio.ROUTES,
    *embeddings.ROUTES,
]
