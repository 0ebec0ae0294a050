"""Chats as OpenAI writes them → the tokens a model expects.

Three kinds of folder. One tuned here has a template that is data (`tokenizer.turns`). A published
one has a template that is a program, in jinja: it runs confined (`confined`), and what users said
is not in it. Each text goes in as a placeholder, with its white space, so that a template may trim
it, and is put back afterwards. A base model has none: it continues texts and does not chat.

Whatever is typed, no special token comes of it: text between special tokens is encoded in one piece
with special tokens switched off, and those that only a template may write (`<tool_call>`) are cut
apart. What the template itself writes is read with them on. Sizes are looked at before anything is
tokenised: more than `BYTES` bytes for each token the model holds are refused uncounted.

Left out: templates that look into texts (removing an earlier answer's thoughts by what stands
between tags) do not find anything there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onsil.inference.calls import CLOSE, OPEN
from onsil.inference.confined import Confined, GaveUp
from onsil.inference.ending import computing
from onsil.inference.refusals import TooLong, bad_chat, no_template
from onsil.tokenizer.turns import FILE, Message, Template, load_template, plain_ids, prompt_ids

BYTES = 16  # a token is rarely more than six
LONGEST_TEMPLATE = 200_000  # characters
SECONDS = 2.0
TOOLS = """# Tools

You may call these functions, given as JSON, one a line:
<tools>
{tools}
</tools>

To call one, write only:
<tool_call>
{{"name": "the function's name", "arguments": {{"name": "value"}}}}
</tool_call>"""

Chat = Sequence[Mapping[str, Any]]


@dataclass
class Prompts:
    """What stands between a door and the engine of one model. `stop`: tokens that end an answer;
    `spelled`: what a jinja template may write for bos_token and the like."""

    tokenizer: Any
    context: int
    stop: frozenset[int]
    template: Template | None = None
    jinja: str | None = None
    spelled: Mapping[str, str] = field(default_factory=dict)
    confined: Confined = field(default_factory=Confined)
    open_ended: bool = True  # texts are gone on with: an end that the tokenizer adds is taken off

    def __post_init__(self):
        added = self.tokenizer.get_added_tokens_decoder()
        program = self.jinja or ""
        self.marks = {
            token.content: number
            for number, token in added.items()
            if token.content and (token.special or token.content in program)
        }
        self.strips = {t.content: (t.lstrip, t.rstrip) for t in added.values()}
        longest_first = sorted(self.marks, key=len, reverse=True)
        self.splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def chats(self) -> bool:
        return self.template is not None or self.jinja is not None

    @property
    def knows_tools(self) -> bool:
        """Whether the template has a place for tools; else they are told in the system turn."""
        return self.jinja is not None and "tools" in self.jinja

    @computing()
    def text(self, text: str) -> tuple[int, ...]:
        """A text to go on from, or to make a vector of. Raises TooLong."""
        self._modest(len(text.encode("utf-8", "replace")))
        ids = self.tokenizer.encode(text).ids
        while self.open_ended and ids and ids[-1] in self.stop:
            ids.pop()
        return self._fitting(ids)

    @computing()
    def chat(self, messages: Chat, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Up to where the assistant's next turn begins. `messages`: role, content (text or None),
        tool_calls, tool_call_id, name, as OpenAI has them. Raises TooLong, and OnsilError when
        there is no template or it refuses the messages."""
        if not self.chats:
            raise no_template()
        told = json.dumps([messages, tools], ensure_ascii=False, default=str)
        self._modest(len(told.encode("utf-8", "replace")))
        if not self.knows_tools:
            messages = one_system(messages, told_tools(tools))
        if self.template is not None:
            turns = [turn_of(self.template, message) for message in messages]
            return self._fitting(prompt_ids(self.tokenizer, self.template, turns))
        return self._fitting(self._encoded(*self._rendered(messages, tools)))

    def _modest(self, size: int) -> None:
        if size > BYTES * self.context:
            raise TooLong(0, self.context, size)

    def _fitting(self, ids: Sequence[int]) -> tuple[int, ...]:
        if not 0 < len(ids) < self.context:
            raise TooLong(len(ids), self.context)
        return tuple(ids)

    # ── templates that are programs ─────────────────────────────────────────────────────────────

    def _rendered(self, messages: Chat, tools: Sequence[Mapping]) -> tuple[str, "Hidden"]:
        """What the template writes, and the texts behind its placeholders."""
        hidden = Hidden(json.dumps([self.jinja, messages, tools], ensure_ascii=False, default=str))
        values = {
            **self.spelled,
            "messages": [self._hidden(message, hidden) for message in messages],
            "tools": self._harmless(list(tools), hidden) if tools else None,
            "add_generation_prompt": True,
        }
        try:
            told = self.confined.ask({"template": self.jinja, "values": values}, SECONDS)
        except GaveUp as e:
            raise bad_chat(f"working it out, {e}", "템플릿을 실행하지 못했습니다") from e
        if "error" in told:
            raise bad_chat(told["error"])
        return told["text"], hidden

    def _hidden(self, message: Mapping[str, Any], hidden: "Hidden") -> dict[str, Any]:
        rest = {k: v for k, v in message.items() if k != "content" and v is not None}
        if "tool_calls" in rest:
            rest["tool_calls"] = [
                {**call, "function": {**function, "arguments": arguments_of(function)}}
                for call in rest["tool_calls"]
                for function in [call["function"]]
            ]
        content = hidden.put(str(message.get("content") or ""))
        return {**self._harmless(rest, hidden), "content": content}

    def _harmless(self, value: Any, hidden: "Hidden") -> Any:
        """The same, with texts that spell a special token hidden."""
        if isinstance(value, str):
            return hidden.put(value) if self.marks and self.splitter.search(value) else value
        if isinstance(value, Mapping):
            made = {}
            for key, part in value.items():
                if self.marks and self.splitter.search(str(key)):
                    raise bad_chat(f"a name is {key!r}", f"이름이 {key!r}입니다")
                made[str(key)] = self._harmless(part, hidden)
            return made
        if isinstance(value, (list, tuple)):
            return [self._harmless(part, hidden) for part in value]
        return value

    def _encoded(self, rendered: str, hidden: "Hidden") -> list[int]:
        ids: list[int] = []
        text, strip = "", False

        def flush(before: str | None) -> None:
            nonlocal text
            text = text.lstrip() if strip else text
            text = text.rstrip() if before and self.strips[before][0] else text
            if text:
                ids.extend(plain_ids(self.tokenizer, text, self.marks.values()))
            text = ""

        for literal, said in hidden.taken(rendered):
            for piece in self.splitter.split(literal) if self.marks else [literal]:
                if piece in self.marks:
                    flush(piece)
                    ids.append(self.marks[piece])
                    strip = self.strips[piece][1]
                else:
                    text += piece
            text += said
        flush(None)
        return ids


class Hidden:
    """Texts behind placeholders. A placeholder has a quotation mark in it, so that what became of
    it tells whether the template wrote it as it is or as JSON."""

    def __init__(self, everything: str):
        # A plane for private use: more characters than a chat can hold.
        unused = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in everything)
        self.opening, self.closing = next(unused), next(unused)
        self.texts: list[str] = []
        self.pattern = re.compile(f'{self.opening}(\\\\*)"(\\d+){self.closing}')

    def put(self, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        self.texts.append(core)
        place = f'{self.opening}"{len(self.texts) - 1}{self.closing}'
        lead = len(text) - len(text.lstrip())
        return text[:lead] + place + text[lead + len(core) :]

    def taken(self, rendered: str) -> list[tuple[str, str]]:
        """The rendered text as (what the template wrote, what was said after it)."""
        parts, at = [], 0
        for found in self.pattern.finditer(rendered):
            said = self.texts[int(found[2])]
            if found[1]:
                said = json.dumps(said, ensure_ascii=False)[1:-1]
            parts.append((rendered[at : found.start()], said))
            at = found.end()
        parts.append((rendered[at:], ""))
        if any(mark in literal for literal, _ in parts for mark in (self.opening, self.closing)):
            raise bad_chat("it takes texts apart", "템플릿이 글을 조각냅니다")
        return parts


# ── templates that are data ─────────────────────────────────────────────────────────────────────


def one_system(messages: Chat, more: str = "") -> list[Mapping[str, Any]]:
    """The messages with the first system turns as one, `more` at its end."""
    many = 0
    while many < len(messages) and messages[many]["role"] in ("system", "developer"):
        many += 1
    texts = [str(message.get("content") or "") for message in messages[:many]] + [more]
    whole = "\n\n".join(filter(None, texts))
    first = [{"role": "system", "content": whole}] if many or more else []
    return [*first, *messages[many:]]


def told_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools as text, for templates that have no place for them."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return TOOLS.format(tools=lines) if tools else ""


def turn_of(template: Template, message: Mapping[str, Any]) -> Message:
    """One message as a turn: calls written as text, results of tools as the user's turn where the
    template has no turn of theirs."""
    role, content = str(message["role"]), str(message.get("content") or "")
    for call in message.get("tool_calls") or ():
        function = {"name": call["function"]["name"], "arguments": arguments_of(call["function"])}
        told = json.dumps(function, ensure_ascii=False)
        content += f"{chr(10) if content else ''}{OPEN}\n{told}\n{CLOSE}"
    if role == "tool" and "tool" not in template.roles:
        role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
    return Message("system" if role == "developer" else role, content)


def arguments_of(function: Mapping[str, Any]) -> Any:
    """A call's arguments as values; as they are when they are no JSON object."""
    told = function.get("arguments", "{}")
    try:
        found = json.loads(told) if isinstance(told, str) else told
    except (ValueError, RecursionError):
        return told
    return found if isinstance(found, dict) else told


# ── the folder ──────────────────────────────────────────────────────────────────────────────────


def load_prompts(folder: Path, tokenizer: Any, context: int, stop: frozenset[int]) -> Prompts:
    """How the model of a folder is spoken to. Raises OnsilError when its template is damaged."""
    made = Prompts(tokenizer, context, stop)
    if (folder / FILE).is_file():
        template = load_template(folder)
        ends = tokenizer.token_to_id(template.stop)
        return replace(made, template=template, stop=stop | ({ends} - {None}))
    settings = _settings(folder / "tokenizer_config.json")
    program = _program(folder, settings)
    if program is None:
        return made
    if len(program) > LONGEST_TEMPLATE:
        raise bad_chat(
            f"it has more than {LONGEST_TEMPLATE:,} characters",
            f"템플릿이 {LONGEST_TEMPLATE:,}자를 넘습니다",
        )
    spelled = {
        name: value
        for name, told in settings.items()
        if name.endswith("_token")
        and isinstance(value := told.get("content") if isinstance(told, dict) else told, str)
    }
    end = tokenizer.token_to_id(spelled.get("eos_token", ""))
    return replace(made, jinja=program, spelled=spelled, stop=stop | ({end} - {None}))


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise bad_chat(f"{path.name} is not JSON", f"{path.name}이 JSON이 아닙니다") from e
    return found if isinstance(found, dict) else {}


def _program(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The jinja template: a file of its own, or a setting, the one called default of several."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise bad_chat(f"{own.name} is not UTF-8", f"{own.name}이 UTF-8이 아닙니다") from e
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
