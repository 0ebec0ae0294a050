"""What is said where a workspace cannot be found, made or read."""

import os
from pathlib import Path

from onsil.errors import OnsilError


def none_found(root: Path) -> OnsilError:
    if os.environ.get("ONSIL_HOME"):
        en, ko = f"$ONSIL_HOME is {root}", f"$ONSIL_HOME({root})"
        en, ko = f"{en}, where there is no workspace.", f"{ko}에 작업 공간이 없습니다."
    else:
        en = f"There is no workspace (.onsil) in {root.parent} or above it."
        ko = f"{root.parent}와 그 상위 폴더에 작업 공간(.onsil)이 없습니다."
    return OnsilError(
        en=(
            en,
            "Models and all that is known of them are kept in one.",
            "Go to where you grew yours, set $ONSIL_HOME to it, or grow a model here: "
            "onsil grow FOLDER --name NAME",
        ),
        ko=(
            ko,
            "모델과 그 이력은 모두 작업 공간에 있습니다.",
            "모델을 기른 폴더로 가거나 $ONSIL_HOME을 지정하거나 여기에서 새로 길러 주세요: "
            "onsil grow 폴더 --name 이름",
        ),
    )


def no_folder(root: Path) -> OnsilError:
    return OnsilError(
        en=(
            f"{root} cannot be a workspace: it, or what it is in, is a file.",
            "Results are kept in a folder.",
            "Set $ONSIL_HOME to a folder, or unset it to use .onsil here.",
        ),
        ko=(
            f"{root}은(는) 작업 공간이 될 수 없습니다. 폴더가 아니라 파일이 있습니다.",
            "결과는 폴더에 저장합니다.",
            "$ONSIL_HOME을 폴더로 지정하거나, 지정하지 않고 이 폴더의 .onsil을 써 주세요.",
        ),
    )


def damaged_version(path: Path) -> OnsilError:
    return OnsilError(
        en=(
            f"{path} is damaged: it is to say which bytes {path.parent.name}@{path.stem} is.",
            "The bytes are still there, but no name leads to them.",
            "Delete the file and run `onsil grow` as before: what is whole is not made again.",
        ),
        ko=(
            f"{path}이(가) 손상되었습니다. {path.parent.name}@{path.stem}이 어느 결과인지 적는 "
            "파일입니다.",
            "결과는 남아 있지만 이름으로 찾아갈 수 없습니다.",
            "파일을 지우고 `onsil grow`를 전과 같이 실행하면 온전한 것은 다시 만들지 않습니다.",
        ),
    )


def lost_version(path: Path, version: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{path} names {version}, which {path.parent.name} no longer has.",
            "Without it a bare name could mean another version than before.",
            "Delete the file: the newest version answers, until the next `onsil grow` chooses.",
        ),
        ko=(
            f"{path}이(가) 가리키는 {version}이(가) {path.parent.name}에 더는 없습니다.",
            "이 버전이 없으면 이름이 전과 다른 버전을 가리킬 수 있습니다.",
            "파일을 지우면 가장 새 버전이 답하고, 다음 `onsil grow`가 대표를 다시 고릅니다.",
        ),
    )


def damaged_aliases(path: Path) -> OnsilError:
    return OnsilError(
        en=(
            f"{path} is damaged: it is to say which version of {path.parent.name} is the champion.",
            "Without it a bare name could mean another version than before.",
            "Delete the file: the newest version answers, until the next `onsil grow` chooses.",
        ),
        ko=(
            f"{path}이(가) 손상되었습니다. {path.parent.name}의 어느 버전이 대표인지 적는 "
            "파일입니다.",
            "이 파일이 없으면 이름이 전과 다른 버전을 가리킬 수 있습니다.",
            "파일을 지우면 가장 새 버전이 답하고, 다음 `onsil grow`가 대표를 다시 고릅니다.",
        ),
    )
