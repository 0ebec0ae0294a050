"""Chats to ids and targets, in one go: what is said, what is learnt and what ends it.

Most training on chats that fails, fails here: a mask made apart from the ids and empty, an end of
turn that never was a target, a template at serving time that is not the one of training. So there
is one renderer. It makes ids and targets together from typed turns, and the template it follows is
data that lies in the model's folder (`save_template`, `load_template`) for whoever trains,
evaluates and serves.

    begin  before·content·after  before·content·after …           a turn is wrapped by its role
                                        ‾‾‾‾‾‾‾ ‾‾‾‾               learnt: content and the stop

Three promises, whatever a chat says: content never becomes a special token; the learnt tokens
decode exactly to the learnt turns, each closed by the stop; the prompt of a turn (`prompt_ids`) is
the beginning of the chat that was trained on.

Text between special tokens is encoded in one piece, as published templates are, except where what
is learnt begins and ends. Left out: templates that are programs (jinja), and turns that are not
text. The published templates are rows in `templates.py`.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from onsil.errors import OnsilError
from onsil.lineage.spelling import canonical
from onsil.tokenizer.template import NO_TARGET

FILE, VERSION = "template.json", 1


@dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Role:
    """What stands before and after a turn's content, and `lead`, which belongs to the content (the
    space that begins a word in Vicuna)."""

    before: str
    after: str
    lead: str = ""


@dataclass(frozen=True)
class Template:
    """How turns are written. `marks`: what in these strings is a special token; all else is text.

    `system`: the system text of a chat that brings none. `supervised`: roles whose turns are
    learnt; their `after` begins with `stop`, the special token that ends a turn. `pad` fills
    batches and is never the stop: a model that is taught to ignore its padding would never end.
    """

    name: str
    roles: Mapping[str, Role]
    marks: tuple[str, ...]
    stop: str
    pad: str
    begin: str = ""
    system: str = ""
    supervised: tuple[str, ...] = ("assistant",)

    def __post_init__(self) -> None:
        open_ended = [r for r in self.supervised if not self.closes(r)]
        if self.pad == self.stop or self.stop not in self.marks or open_ended:
            wrong = f"{open_ended[0]!r} does not end with it" if open_ended else f"pad {self.pad!r}"
            raise OnsilError(
                en=(
                    f"Template {self.name!r} has no stop of its own: {self.stop!r}, {wrong}.",
                    "A turn must end with a special token that padding is not, or the model never "
                    "learns to stop.",
                    "Name the stop in marks, put it first in what follows a learnt turn, and give "
                    "pad another token.",
                ),
                ko=(
                    f"템플릿 {self.name!r}에 고유한 끝 토큰이 없습니다: {self.stop!r}, {wrong}.",
                    "차례는 채움 토큰과 다른 특수 토큰으로 끝나야 모델이 멈추는 법을 배웁니다.",
                    "marks에 끝 토큰을 적고, 학습할 차례의 뒤에 맨 먼저 두고, pad는 다른 토큰으로 "
                    "정해 주세요.",
                ),
            )

    def closes(self, role: str) -> bool:
        """Whether turns of this role end with the stop."""
        return role in self.roles and self.roles[role].after.startswith(self.stop)

    @cached_property
    def splitter(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, self.marks)) + ")")


@dataclass(frozen=True)
class Chat:
    """`ids`, and which of them were `said` by whom is learnt from: the targets."""

    ids: tuple[int, ...]
    said: tuple[bool, ...]

    @property
    def targets(self) -> tuple[int, ...]:
        """What each token but the last should predict; `NO_TARGET` where nothing is learnt."""
        pairs = zip(self.ids[1:], self.said[1:], strict=True)
        return tuple(token if said else NO_TARGET for token, said in pairs)


# ── rendering ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Part:
    text: str
    mark: bool
    said: bool


def _literal(template: Template, text: str) -> Iterator[_Part]:
    """A string of the template, cut at its special tokens."""
    for piece in template.splitter.split(text):
        if piece:
            yield _Part(piece, piece in template.marks, False)


def _parts(template: Template, messages: Sequence[Message], asked: bool = False) -> list[_Part]:
    """A chat in reading order; when `asked`, up to where the assistant's next turn begins."""
    turns = list(messages)
    if template.system and (not turns or turns[0].role != "system"):
        turns.insert(0, Message("system", template.system))
    parts = list(_literal(template, template.begin))
    for place, turn in enumerate(turns):
        if turn.role not in template.roles or (turn.role == "system" and place):
            raise _no_such_turn(template, turn, place)
        role, learnt = template.roles[turn.role], turn.role in template.supervised
        parts += _literal(template, role.before)
        parts.append(_Part(role.lead + turn.content, False, learnt))
        after = list(_literal(template, role.after))
        parts += [replace(after[0], said=True), *after[1:]] if learnt else after
    return parts + (list(_literal(template, template.roles["assistant"].before)) if asked else [])


def _encoded(tokenizer, template: Template, parts: list[_Part]) -> Chat:
    """Ids of the parts: neighbouring text of one kind in one piece, marks by their number."""
    marks = mark_ids(tokenizer, template)
    ids: list[int] = []
    said: list[bool] = []
    text, learnt = "", False
    for part in [*parts, _Part("", True, False)]:
        if text and (part.mark or part.said != learnt):
            new = plain_ids(tokenizer, text, marks.values())
            ids, said, text = ids + new, said + [learnt] * len(new), ""
        if part.mark and part.text:
            ids.append(marks[part.text])
            said.append(part.said)
        elif not part.mark:
            text, learnt = text + part.text, part.said
    return Chat(tuple(ids), tuple(said))


def render(tokenizer, template: Template, messages: Sequence[Message]) -> Chat:
    """A whole chat, to learn from. Raises OnsilError for a role the template has not, a system turn
    that is not the first, a special token the tokenizer lacks, and a chat that begins with what is
    to be learnt (nothing could predict its first token)."""
    chat = _encoded(tokenizer, template, _parts(template, messages))
    if chat.said and chat.said[0]:
        raise _no_such_turn(template, messages[0], 0)
    return chat


def prompt_ids(tokenizer, template: Template, messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids up to where the assistant's next turn begins. Raises OnsilError as `render` does."""
    return _encoded(tokenizer, template, _parts(template, messages, asked=True)).ids


def spelled(template: Template, messages: Sequence[Message], asked: bool = False) -> str:
    """A chat as it is written, special tokens spelt out: to look at, not to encode."""
    return "".join(part.text for part in _parts(template, messages, asked))


def mark_ids(tokenizer, template: Template) -> dict[str, int]:
    """`{special token: id}`, pad among them. Raises OnsilError when the tokenizer lacks one."""
    found = {mark: tokenizer.token_to_id(mark) for mark in (*template.marks, template.pad)}
    if lacking := [mark for mark, number in found.items() if number is None]:
        raise OnsilError(
            en=(
                f"The tokenizer has no {', '.join(lacking)}, which template {template.name!r} "
                "writes.",
                "Written as ordinary text, anybody could type it and end a turn.",
                "Give the template the tokens there are with renamed(template, {...}).",
            ),
            ko=(
                f"템플릿 {template.name!r}이 쓰는 {', '.join(lacking)} 토큰이 토크나이저에 "
                "없습니다.",
                "보통 글로 적으면 누구나 입력해서 차례를 끝낼 수 있습니다.",
                "renamed(template, {...})로 토크나이저에 있는 토큰을 쓰게 해 주세요.",
            ),
        )
    return found


def plain_ids(tokenizer, text: str, marks: Collection[int]) -> list[int]:
    """Ids of a text that may say anything and yet holds no special token and none of `marks`.

    Special tokens are switched off in the tokenizer (and stay off). A vocabulary may also have
    added tokens that are not called special; what spells one is cut behind its first character.
    """
    tokenizer.encode_special_tokens = True
    read = tokenizer.encode(text, add_special_tokens=False)
    if set(marks).isdisjoint(read.ids):
        return list(read.ids)
    spots = zip(read.ids, read.offsets, strict=True)
    cuts = [first + 1 for number, (first, _) in spots if number in marks]
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = [i for p in pieces for i in tokenizer.encode(p, add_special_tokens=False).ids]
    assert set(marks).isdisjoint(ids), f"a character is a special token: {text[:80]!r}"
    return ids


def _no_such_turn(template: Template, turn: Message, place: int) -> OnsilError:
    known = ", ".join(template.roles)
    return OnsilError(
        en=(
            f"Turn {place + 1} is of role {turn.role!r}: {turn.content[:40]!r}.",
            f"Template {template.name!r} knows {known}; a system turn comes first, and a chat "
            "begins with something to answer.",
            "Change the role, put the turns in order, or choose another template.",
        ),
        ko=(
            f"{place + 1}번째 차례의 역할이 {turn.role!r}입니다: {turn.content[:40]!r}.",
            f"템플릿 {template.name!r}의 역할은 {known}입니다. system은 맨 앞에 와야 하고, 대화는 "
            "답할 거리로 시작해야 합니다.",
            "역할이나 차례를 고치거나 다른 템플릿을 골라 주세요.",
        ),
    )


# ── long chats ──────────────────────────────────────────────────────────────────────────────────


def fitted(
    tokenizer, template: Template, messages: Sequence[Message], context: int
) -> tuple[list[Chat], int]:
    """A chat as parts that a model of `context` positions can read, and how many tokens no part
    has. Every target is in exactly one part.

    Cut between exchanges first, each part with the system turn. An exchange that is too long by
    itself is cut inside: the later part reads the end of the earlier one again, and where the
    question is what does not fit, its beginning is not read.
    """
    whole = render(tokenizer, template, messages)
    if len(whole.ids) <= context + 1:
        return [whole], 0
    system = [m for m in messages[:1] if m.role == "system"]
    groups: list[list[Message]] = [[]]
    for turn in messages[len(system) :]:
        groups[-1].append(turn)
        groups += [[]] if turn.role in template.supervised else []
    parts: list[list[Message]] = []
    for group in filter(None, groups):
        longer = [*parts[-1], *group] if parts else []
        fits = parts and len(render(tokenizer, template, [*system, *longer]).ids) <= context + 1
        parts = [*parts[:-1], longer] if fits else [*parts, group]
    made, unread = [], 0
    for part in parts:
        windows, lost = _windows(render(tokenizer, template, [*system, *part]), context + 1)
        made += windows
        unread += lost
    return made, unread


def _windows(chat: Chat, size: int) -> tuple[list[Chat], int]:
    """At most `size` tokens each, every target in one; and how many first tokens none has."""
    learnt = [i for i, said in enumerate(chat.said) if said]
    if not learnt:
        return [], len(chat.ids)
    done, last, begun, windows = learnt[0], learnt[-1] + 1, [], []
    while done < last:
        end = min(last, max(done + size // 2, size))
        start = max(0, end - size)
        said = tuple(chat.said[i] and i >= done for i in range(start, end))
        begun.append(start)
        windows.append(Chat(chat.ids[start:end], said))
        done = end
    return windows, begun[0]


# ── the template as a file ──────────────────────────────────────────────────────────────────────


def digest(template: Template) -> str:
    """SHA-256 of what the template says."""
    return hashlib.sha256(canonical(_told(template)).encode()).hexdigest()


def _told(template: Template) -> dict:
    return {"version": VERSION} | asdict(template)


def save_template(template: Template, folder: Path) -> None:
    """template.json in a model's folder."""
    text = json.dumps(_told(template), ensure_ascii=False, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def load_template(folder: Path) -> Template:
    """The template of a model's folder. Raises OnsilError when there is none, when it is of another
    version, and when a field is missing, unknown or of another type."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if (version := told.pop("version", None)) != VERSION:
            raise ValueError(f"version {version!r}, not {VERSION}")
        if wrong := sorted(set(told) ^ {f.name for f in fields(Template)}):
            raise ValueError(f"fields unknown or missing: {', '.join(wrong)}")
        told["roles"] = {name: Role(**role) for name, role in told["roles"].items()}
        for name in ("marks", "supervised"):
            told[name] = tuple(told[name])
        strings = [told[n] for n in ("name", "stop", "pad", "begin", "system")]
        strings += [*told["marks"], *told["supervised"]]
        strings += [s for r in told["roles"].values() for s in (r.before, r.after, r.lead)]
        if odd := next((s for s in strings if not isinstance(s, str)), None):
            raise ValueError(f"{odd!r} is not text")
        return Template(**told)
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise OnsilError(
            en=(
                f"{folder.name}/{FILE} is not a template: {e}.",
                "A chat model answers well only in the very template it was trained in.",
                "Take template.json from the folder that training made.",
            ),
            ko=(
                f"{folder.name}/{FILE}을 템플릿으로 읽을 수 없습니다: {e}.",
                "대화 모델은 학습한 템플릿 그대로 물어야 제대로 답합니다.",
                "학습이 만든 폴더의 template.json을 가져와 주세요.",
            ),
        ) from e


def renamed(template: Template, names: Mapping[str, str]) -> Template:
    """The template with other special tokens: `{its own: the tokenizer's}`; an empty one vanishes.

    So a published template is written with the special tokens that a tokenizer has."""

    def of(text: str) -> str:
        pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        return "".join(names.get(piece, piece) for piece in pieces)

    return replace(
        template,
        roles={n: Role(of(r.before), of(r.after), r.lead) for n, r in template.roles.items()},
        marks=tuple(dict.fromkeys(filter(None, map(of, template.marks)))),
        stop=of(template.stop),
        pad=of(template.pad),
        begin=of(template.begin),
    )
