"""A prompt of learnt rows belongs to its decoder as it is. Whoever changes the decoder's weights,
or leaves the rows out, has another model than was asked before; so nothing is trained on from a
folder that has one.
"""

from pathlib import Path

from onsil.errors import OnsilError
from onsil.models.prompted import PROMPT


def refuse_prompted(folder: Path) -> None:
    """Raises OnsilError when rows are learnt before the decoder of a folder: training that goes on
    from the decoder would leave them behind."""
    if (folder / PROMPT).is_dir():
        raise OnsilError(
            en=(
                f"{folder.name[:12]} has a learnt prompt ({PROMPT}/) before a frozen decoder.",
                "Training goes on from the decoder alone; without its rows it is another model.",
                'Tune the chats with method="full", "lora" or "qlora", and go on from there.',
            ),
            ko=(
                f"{folder.name[:12]}에는 얼린 디코더 앞에 학습한 프롬프트({PROMPT}/)가 있습니다.",
                "여기서는 디코더에서만 이어 학습하는데, 그 프롬프트가 없으면 다른 모델입니다.",
                '대화를 method="full", "lora", "qlora" 가운데 하나로 조정한 뒤 이어 가 주세요.',
            ),
        )
