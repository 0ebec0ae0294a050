"""The child of `sandbox`: reads requests from standard input, answers on standard output.

    python -m onsil.documents.sandbox_child MEMORY CPU

Bounds are set before the first byte of a document is looked at. Processor time is counted over the
whole life of a process, so its bound is moved on before every file. What a library prints goes
nowhere, for standard output belongs to the answers.
"""

import os
import sys
import warnings
from typing import Any

from onsil.documents.formats import LEGACY, parse
from onsil.documents.kinds import kind_of
from onsil.documents.sandbox import packed, receive, refusal, send
from onsil.errors import OnsilError

LONGEST = 300  # characters of a foreign error


def main() -> None:
    memory, cpu = int(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _bound_memory(memory)
    while True:
        try:
            request, read = receive(requests)
        except EOFError:
            return
        data = read(request["size"])
        _bound_cpu(cpu)
        reply, raw = answer(request["suffix"], data)
        send(answers, reply, *raw)
        del data, reply, raw


def answer(suffix: str, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The reply to one request; whatever a reader raises is a reply too."""
    try:
        kind = kind_of(suffix, data)
        return packed(kind, *(("", [], []) if kind in LEGACY else parse(kind, data)))
    except OnsilError as error:
        return refusal(error), []
    except MemoryError:
        return {"memory": True}, []
    except RecursionError:
        return refusal(_too_deep()), []
    except Exception as error:  # a parser met a file its authors did not; the rest must go on
        return refusal(_unknown(f"{type(error).__name__}: {error}"[:LONGEST])), []


def _bound_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size if most == resource.RLIM_INFINITY else min(size, most)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
    except (ValueError, OSError):  # macOS refuses bounds below what is mapped; the clock remains
        return


def _bound_cpu(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    used = sum(os.times()[:2])
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used) + seconds + 1
    resource.setrlimit(
        resource.RLIMIT_CPU,
        (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most),
    )


def _too_deep() -> OnsilError:
    return OnsilError(
        en=(
            "its contents are nested too deep",
            "No program writes that; the file is damaged or made to break readers.",
            "Open it in its program and save it again, or leave it out.",
        ),
        ko=(
            "내용이 지나치게 깊이 겹쳐 있습니다.",
            "프로그램이 쓴 파일이 아니며, 손상되었거나 일부러 만든 파일로 보입니다.",
            "만든 프로그램에서 열어 다시 저장하거나 폴더에서 빼 주세요.",
        ),
    )


def _unknown(what: str) -> OnsilError:
    return OnsilError(
        en=(
            f"the reader stopped at something it does not know ({what})",
            "The file is damaged, or of a kind that has not been met.",
            "Open it in its program and save it again.",
        ),
        ko=(
            f"읽는 도중 알 수 없는 내용을 만나 멈추었습니다({what}).",
            "파일이 손상되었거나 아직 다루어 보지 못한 종류입니다.",
            "만든 프로그램에서 열어 다시 저장해 주세요.",
        ),
    )


if __name__ == "__main__":
    main()
