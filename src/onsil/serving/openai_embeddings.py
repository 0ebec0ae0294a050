"""OpenAI's embeddings: texts to vectors of length one."""

import base64
from typing import Any

from numpy.typing import NDArray

from onsil.serving.schemas import EmbeddingRequest
from onsil.serving.speaking import Speaker


def texts_of(request: EmbeddingRequest) -> list[str]:
    return [request.input] if isinstance(request.input, str) else list(request.input)


def embeddings(
    speaker: Speaker, request: EmbeddingRequest, vectors_ND: NDArray, tokens: int
) -> dict[str, Any]:
    """The list object; base64 is of little-endian float32, as OpenAI's client expects."""
    packed = request.encoding_format == "base64"

    def written(vector: NDArray) -> Any:
        vector = vector.astype("<f4")
        return base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()

    return {
        "object": "list",
        "model": speaker.reference,
        "data": [
            {"object": "embedding", "index": n, "embedding": written(vector)}
            for n, vector in enumerate(vectors_ND)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "onsil": {"digest": speaker.digest},
    }
