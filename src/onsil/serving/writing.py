"""The speaker of a model that writes: chats rendered by its own template, an engine behind it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from onsil.serving.speaking import Speaker


@dataclass(frozen=True)
class Writing(Speaker):
    """A decoder."""

    served: Any
    queues: ClassVar[bool] = True
