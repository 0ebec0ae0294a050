"""The models that may be asked, loaded when first asked.

A name is resolved anew for every request, so that a new champion answers from the next question on
and nothing has to be restarted; a model is hashed before it answers for the first time.
"""

import logging
import threading
from typing import Any

from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.retrieval.answering import Answerer
from onsil.serving.guard import Refused
from onsil.serving.openai_chat import Speaker, model_object
from onsil.tokenizer import load_tokenizer

KEPT = 2
log = logging.getLogger("onsil.serving")


class Models:
    """The models that may be asked: every version of one name, loaded when first asked."""

    def __init__(self, ws: Workspace, name: str):
        self.ws, self.name = ws, ws.resolve(name)[0]
        self._loaded: dict[str, tuple[Answerer, Any]] = {}
        self._lock = threading.Lock()

    def speaker(self, reference: str) -> tuple[Speaker, Any]:
        """The model a reference means now, and its tokenizer. Raises Refused (404) for another."""
        if reference.partition("@")[0] != self.name:
            raise _unknown(reference)
        try:
            name, version, made = self.ws.resolve(reference)
        except OnsilError as e:
            raise _unknown(reference) from e
        with self._lock:
            if made.digest not in self._loaded:
                try:
                    folder = self.ws.whole(made)
                except OnsilError as e:
                    log.error("%s is damaged", made.digest)
                    raise Refused(503, e.en[0], "server_error", code="model_damaged") from e
                self._loaded[made.digest] = (Answerer(folder), load_tokenizer(folder / "tokenizer"))
                for old in list(self._loaded)[:-KEPT]:
                    del self._loaded[old]
            answerer, words = self._loaded[made.digest]
        return Speaker(name, version, made.digest, answerer), words

    def listed(self) -> list[dict[str, Any]]:
        return [
            model_object(self.name, version, entry["object"], entry["at"])
            for version, entry in self.ws.versions(self.name).items()
        ]


def _unknown(reference: str) -> Refused:
    return Refused(
        404, f"There is no model {reference!r} here.", param="model", code="model_not_found"
    )
