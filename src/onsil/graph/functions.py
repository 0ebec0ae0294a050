"""A function by its address: module, qualified name, and the file where the module lies.

Another process gets no function, it gets an address and looks the function up (a pickled function
would be code from a socket). A module that is not on the path, because it is a script that was
started or a deployment file that was read, is read again from its file under the same name.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.graph.nodes import Step

SCRIPT = "__onsil_script__"  # what a started script is called where it is only read


def address_of(fn: Callable) -> dict[str, str | None]:
    """The address of `fn` as plain JSON. Raises OnsilError for one that has none: a lambda, a
    function inside another, a method of an object."""
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "<object>")
    if module is None or "<" in qualname or getattr(fn, "__self__", None) is not None:
        raise OnsilError(
            en=(
                f"{qualname} cannot run in another process.",
                "It is looked up there by its module and name, and it has none.",
                "Make it a function at the top of a module, or keep it here with on='inline'.",
            ),
            ko=(
                f"{qualname}은(는) 다른 프로세스에서 실행할 수 없습니다.",
                "그곳에서는 모듈과 이름으로 함수를 찾는데, 이 함수에는 그것이 없습니다.",
                "모듈 맨 바깥의 함수로 옮기거나 on='inline'으로 이 프로세스에 두세요.",
            ),
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    place = str(Path(file).resolve()) if file else None
    return {"module": module, "name": qualname, "file": place}


def function_at(address: dict[str, str | None]) -> Callable[[Any], Any]:
    """The function at an address. Raises OnsilError when it is not there."""
    module, name, file = address["module"] or "", address["name"] or "", address["file"]
    found: Any = _module(SCRIPT if module == "__main__" else module, file)
    for part in name.split("."):
        found = getattr(found, part, None)
    fn = found.fn if isinstance(found, Step) else found
    if not callable(fn):
        raise _not_there(module, name, file)
    return fn


def _module(name: str, file: str | None) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        return importlib.import_module(name)
    if file is None or not Path(file).is_file():
        raise _not_there(name, "", file)
    return module_from_file(name, Path(file))


def module_from_file(name: str, file: Path) -> Any:
    """A Python file run as the module `name`, its folder on the path as for a script."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module is none
        raise
    return module


def _not_there(module: str, name: str, file: str | None) -> OnsilError:
    wanted = f"{module}:{name}"
    return OnsilError(
        en=(
            f"{wanted} is not here.",
            f"A step's function is looked up where it runs ({file or 'no file'}).",
            "Install the same code there, and keep the function at the top of its module.",
        ),
        ko=(
            f"{wanted}을(를) 찾을 수 없습니다.",
            f"단계의 함수는 실행되는 곳에서 찾습니다({file or '파일 없음'}).",
            "그곳에도 같은 코드를 설치하고, 함수는 모듈 맨 바깥에 두세요.",
        ),
    )
