"""May this model teach? What its folder says, asked before a word of it is learnt.

A student carries what its teacher's licence says of output and of derived works, and nobody sees it
in the weights afterwards. So a teacher whose terms are known to rule teaching out is refused, and
so is one that says nothing. Whoever has permission writes it down as an argument of the stage, and
then every model taught so carries that sentence in its lineage.

Refused: licences that restrict teaching with output (EXAONE, Llama 2 and 3), that keep derived
works from being passed on (ND) or from being used commercially (NC: KoGPT is CC BY-NC-ND 4.0,
KoGPT2 CC BY-NC-SA 4.0, by their authors' model cards: kakaobrain/kogpt, SKT-AI/KoGPT2). A card gets
lost in copying, so those families are also known by their config. A model grown here from noise or
from the base that ships with onsil needs no licence. No legal advice.
"""

from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.lineage.history import file_lineage
from onsil.lineage.spelling import file_digest
from onsil.models.licence import UNKNOWN, Licence, licence_of
from onsil.models.weights import read_json
from onsil.training.base import shipped

REFUSED = ("teaching", "sharing changes", "selling")
ADOPTING = ("adopt_checkpoint", "adopt_base")
KOGPT, KOGPT2 = "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0"
OWN = Licence("grown here", "lineage")


def teacher_licence(folder: Path) -> Licence:
    """The terms of a teacher: what its folder says, else what its config gives away."""
    config = read_json(folder / "config.json")
    found = licence_of(folder, config)
    if found.name != UNKNOWN:
        return found
    return by_family(config) or (OWN if grown_here(folder) else found)


def by_family(config: dict[str, Any]) -> Licence | None:
    """Families whose every published checkpoint is under one licence, by model_type and, where
    others share that, by the size of their vocabulary."""
    kind, words = str(config.get("model_type")), int(config.get("vocab_size") or 0)
    if kind.startswith("exaone"):
        return Licence("exaone", "config.json")
    known = {("gptj", 64_512): KOGPT, ("gpt2", 51_200): KOGPT2}.get((kind, words))
    return Licence(known, "config.json") if known else None


def grown_here(folder: Path) -> bool:
    """Whether the weights carry a lineage in which nothing from outside was adopted, the shipped
    base excepted."""
    try:
        nodes = file_lineage(folder / "model.safetensors")["nodes"].values()
    except OnsilError:  # it carries none
        return False
    strangers = [n for n in nodes if n["stage"].partition("@")[0] in ADOPTING]
    if not strangers:
        return True
    ours = {file_digest(path) for path in shipped().glob("*/*")}
    ours.add(file_digest(shipped() / "tokenizer.json"))
    return all(file["sha256"] in ours for node in strangers for file in node["arguments"]["files"])


def check_teacher(folder: Path, permission: str = "") -> dict[str, str]:
    """What a stage notes about its teacher: licence, where it stands, permission.

    Raises OnsilError when the licence rules teaching out or is not known and nobody wrote down a
    permission.
    """
    licence = teacher_licence(folder)
    against = [what for what in licence.forbids if what in REFUSED]
    if (against or licence.name == UNKNOWN) and not permission.strip():
        raise _not_allowed(licence)
    return {"licence": licence.name, "source": licence.source, "permission": permission}


def _not_allowed(licence: Licence) -> OnsilError:
    unknown = licence.name == UNKNOWN
    en = f"is under {licence.name} ({licence.source}), which rules teaching other models out"
    ko = f"{licence.name} 라이선스({licence.source})여서 다른 모델을 가르치는 데 쓸 수 없습니다"
    return OnsilError(
        en=(
            f"This teacher {'does not say under which licence it came' if unknown else en}.",
            "Its student would carry those terms, and nobody could see it in the weights.",
            "Use another teacher, or write down who allowed it: permission='...'. "
            "That sentence stays in the lineage.",
        ),
        ko=(
            f"이 교사 모델은 {'라이선스가 적혀 있지 않습니다' if unknown else ko}.",
            "학생 모델도 그 조건을 물려받지만 가중치만 보아서는 알 수 없습니다.",
            "다른 교사를 쓰거나 누가 허락했는지 permission='...'으로 적어 주세요. "
            "그 문장은 계보에 남습니다.",
        ),
    )
