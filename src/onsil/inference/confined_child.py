"""The child of `confined`: renders templates and tries grammars that nobody here wrote.

    python -I confined_child.py template|schema MEMORY

Run by its path, so that it loads jinja2 or llguidance and nothing else. Before the first request
its memory is bounded and it may open no more files, sockets or pipes, not even to read one; how
long a request takes is the parent's business. A template runs in jinja2's immutable sandbox, which
keeps it from what is not data; what a hole in that sandbox would reach is an empty process.
"""

import json
import struct
import sys
from functools import cache
from typing import Any

LONGEST_OUTPUT = 4_000_000  # characters a template may write
Answer = dict[str, Any]


def main() -> None:
    prepare, work = KINDS[sys.argv[1]]
    prepare()
    _bound(int(sys.argv[2]))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := requests.read(8):
        told = json.loads(requests.read(struct.unpack(">Q", head)[0]))
        try:
            answer = work(told)
        except MemoryError:
            answer = {"error": "out of memory"}
        except Exception as error:  # whatever a template or a schema sets off is its answer
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        text = json.dumps(answer).encode()
        answers.write(struct.pack(">Q", len(text)) + text)
        answers.flush()


def _bound(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = {"RLIMIT_AS": memory, "RLIMIT_NOFILE": 3, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
    for name, most in wanted.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        size = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(number, (size, size))
        except (ValueError, OSError):  # macOS refuses bounds below what is mapped
            continue


# ── templates ───────────────────────────────────────────────────────────────────────────────────


def _ready_for_templates() -> None:
    """Load now what would be loaded later, when no file can be opened."""
    import jinja2.debug  # noqa: F401

    for name in ("utf-8", "ascii", "latin-1"):
        "".encode(name)
    _environment().from_string("{{ x|tojson }}{{ [3, 1]|sort|join(' ')|trim }}").render(x=1)


def _environment():
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what is learnt; here it says nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    def strftime_now(form):
        from datetime import datetime

        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _rendered(told: Answer) -> Answer:
    parts, length = [], 0
    for part in _environment().from_string(told["template"]).generate(**told["values"]):
        parts.append(part)
        length += len(part)
        if length > LONGEST_OUTPUT:
            return {"error": f"it writes more than {LONGEST_OUTPUT:,} characters"}
    return {"text": "".join(parts)}


# ── grammars ────────────────────────────────────────────────────────────────────────────────────


def _grammar(told: Answer) -> Answer:
    """The grammar of a schema, worked out here as the parent will: in that it shows what it
    costs, and no less than there, though the vocabulary is bytes."""
    import llguidance

    made = llguidance.LLMatcher.grammar_from_json_schema(told["schema"], overrides=told["options"])
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(_bytes(), made, log_level=0, limits=limits)
    if not matcher.is_error():
        return {"grammar": made}
    wrong = matcher.get_error()
    return {"error": "it becomes too large a grammar" if "panic" in wrong else wrong}


@cache
def _bytes():
    import llguidance

    return llguidance.LLTokenizer("byte")


KINDS = {"template": (_ready_for_templates, _rendered), "schema": (_bytes, _grammar)}

if __name__ == "__main__":
    main()
