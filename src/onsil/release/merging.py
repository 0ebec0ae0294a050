"""Models of a workspace become one, and what they were made from comes along.

`models.merging` joins weights and believes what it is given. Here is asked what makes a merged
model worth trusting. Do its parents have the same words, and were they asked in the same way? Did
they begin as one model, by their lineage; or who says so? And may they be merged: a merged model
stands under the terms of everything that was ever loaded for one of its parents, so a licence that
`training.permission` would not let teach is not let in here without a written permission either,
and what was let in is named in the card of the result, where the next gate reads it.

A line of descent is what the weights went on from, argument by argument (LINE), not what was read
on the way; of a checkpoint that onsil wrote elsewhere its weights tell the rest. Two models began
as one when a digest stands in both lines, the nearest one being their base.

Left out: heads that were learnt beside a model, learnt prompts, and models that quote documents
(their documents belong in one folder, and grown together).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, file_lineage, history, stage
from onsil.lineage.workspace import inputs_of
from onsil.models.headers import read_json
from onsil.models.licence import UNKNOWN, Licence
from onsil.release import refusals
from onsil.training.permission import ADOPTING, OWN, REFUSED, teacher_licence

if TYPE_CHECKING:
    from torch import Tensor

# Arguments by which a stage takes the weights that it goes on from.
LINE = ("decoder", "encoder", "model", "student", "base", "models")
CONFIG, WORDS, TEMPLATE = "config.json", "tokenizer.json", "template.json"
JINJA = ("chat_template.jinja", "chat_template.json")
# What tells others how to read and ask a model; of the parent whose template is kept.
ALONG = (
    WORDS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "generation_config.json", TEMPLATE, *JINJA,
)  # fmt: skip
SPELLING = ("model", "normalizer", "pre_tokenizer", "added_tokens")  # of a tokenizer.json


@dataclass(frozen=True)
class Average:
    """The mean of models; of each as much as its weight says, without weights all the same."""

    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskArithmetic:
    """The base, and of each model so many times what it learnt."""

    scales: tuple[float, ...]


@dataclass(frozen=True)
class Slerp:
    """Between two models along the arc, the first at t = 0."""

    t: float = 0.5


Method = Average | TaskArithmetic | Slerp
SCALE = 0.7  # of each of two, where nobody says; recipes/merging.py has what others give


def method_of(name: str, amounts: str, many: int) -> Method:
    """A method as it is typed. `amounts`: numbers with commas, of each model one: weights of an
    average (none: all the same), scales of task arithmetic (one counts for all); of slerp t alone.
    Raises OnsilError for another name, another count, or what is no number."""
    try:
        given = tuple(float(part) for part in amounts.split(",")) if amounts.strip() else ()
    except ValueError:
        raise refusals.no_method(name, amounts, many) from None
    if name == "average" and len(given) in (0, many):
        return Average(given)
    if name == "task" and len(given) in (0, 1, many):
        return TaskArithmetic(given if len(given) == many else (given or (SCALE,)) * many)
    if name == "slerp" and many == 2 and len(given) <= 1:
        return Slerp(*given)
    raise refusals.no_method(name, amounts, many)


def merge_models(
    ws: Workspace,
    names: Sequence[str],
    how: Method,
    base: str = "",
    origin: str = "",
    permission: str = "",
) -> Artifact:
    """One model out of those of these names, as an artefact.

    `base`: what all of them are to have begun as, and what task arithmetic counts from; unless it
    is named, the nearest that stands in every line of descent. `origin`: who says that they began
    as one, where their lineage does not; `permission`: who allowed it, where a licence does not.
    Both stay in the lineage. Raises OnsilError for what cannot be merged, ought not to be, or is
    no longer whole.
    """
    if isinstance(how, Slerp) and len(names) != 2:
        raise refusals.no_method("slerp", str(how.t), len(names))
    parents = [Parent(ws, name) for name in names]
    if len({parent.made.digest for parent in parents}) < 2:
        raise refusals.too_few([parent.called for parent in parents])
    for parent in parents:
        parent.check()
    begun = Parent(ws, base) if base else None
    common = nearest(parents, begun)
    everyone = [*parents, begun] if begun else parents
    if common is None and not origin.strip():
        raise refusals.strangers([parent.began() for parent in everyone])
    start = None
    if isinstance(how, TaskArithmetic):
        start = begun.made if begun else common
        if start is None or not start.path.is_dir():
            raise refusals.no_base(start)
        ws.whole(start)
    return merge(
        ws,
        models=[parent.made for parent in parents],
        base=start,
        how=how,
        origin={"digest": common.digest if common else "", "said": origin},
        terms=carried([licence for parent in everyone for licence in parent.terms()], permission),
        permission=permission,
    )


# ── where models come from ──────────────────────────────────────────────────────────────────────


class Parent:
    """A model that is to be merged: what it is called, what it went on from, its terms of use."""

    def __init__(self, ws: Workspace, reference: str):
        name, version, self.made = ws.resolve(reference)
        self.ws, self.called = ws, f"{name}@{version} ({self.made.digest[:12]})"

    def check(self) -> None:
        """Raise OnsilError when its bytes changed or it is none that can be merged."""
        folder = self.ws.whole(self.made)
        if (folder / "model.json").is_file():
            raise refusals.quotes(self.called)
        if not ((folder / CONFIG).is_file() and (folder / WORDS).is_file()):
            raise refusals.no_words(self.called)
        if (folder / "prompt").is_dir():
            raise refusals.prompted(self.called)

    def line(self) -> list[Artifact]:
        """What its weights went on from, itself first, each once."""
        nodes = self.nodes()
        found: dict[str, Artifact] = {}
        queue = [(self.made.digest, self.made.key)]
        while queue:
            digest, key = queue.pop(0)
            if digest in found:
                continue
            found[digest] = self.ws.artifact(digest, key)
            arguments = nodes.get(key, {}).get("arguments", {})
            parts = [arguments.get(name) for name in LINE]
            queue += [(source["artifact"], source["key"]) for source in inputs_of(parts)]
        return list(found.values())

    def nodes(self) -> dict[str, Any]:
        """Its ancestry by key; a loaded checkpoint says for itself what it was made from."""
        known: dict[str, Any] = {}
        for record in self.loaded():
            try:
                said = file_lineage(self.ws.artifact(record["object"]) / "model.safetensors")
            except OnsilError:  # it carries none
                continue
            if told := said.get("nodes"):
                known |= told | {record["key"]: told[said["made_by"]]}
        record = self.ws.record(self.made.key) or {"ancestry": {"nodes": {}}}
        return record["ancestry"]["nodes"] | known

    def loaded(self) -> list[dict[str, Any]]:
        """Records of all that came from outside on the way to it."""
        records = (record for _, record in history(self.ws, self.made.key))
        return [record for record in records if record["stage"] in ADOPTING]

    def began(self) -> str:
        """In words: what it is called and the digest at the end of its line."""
        return f"{self.called} ← {self.line()[-1].digest[:12]}"

    def terms(self) -> list[Licence]:
        """Under which licences it stands: of its own folder, and of all that was loaded for it."""
        own = licences_in(self.made.path)
        if set(own) == {OWN}:
            return own
        found = [licence for licence in own if licence.name != UNKNOWN]
        for record in self.loaded():
            found += licences_in(self.ws.artifact(record["object"]).path)
        return found or own


def nearest(parents: Sequence[Parent], begun: Parent | None) -> Artifact | None:
    """The first of the first one's line that stands in the lines of all; or `begun`, if it does."""
    lines = [{made.digest: made for made in parent.line()} for parent in parents]
    wanted = [begun.made.digest] if begun else list(lines[0])
    return next((lines[0][d] for d in wanted if all(d in line for line in lines)), None)


def checkpoints_in(folder: Path) -> list[Path]:
    """The folder itself, if it is a checkpoint, or those in it, if it is a base."""
    parts = (folder, folder / "decoder", folder / "encoder")
    return [part for part in parts if (part / CONFIG).is_file()]


def licences_in(folder: Path) -> list[Licence]:
    return [teacher_licence(part) for part in checkpoints_in(folder)] or [Licence(UNKNOWN)]


def carried(licences: Sequence[Licence], permission: str) -> dict[str, Any]:
    """What a merged model says of its terms: the licence that rules out all that any does, and the
    names of all. Raises OnsilError when one of them lets nothing be made of it and nobody wrote
    down a permission, and when no single one can speak for the rest."""
    outside = [licence for licence in licences if licence != OWN]
    names = sorted({licence.name for licence in outside})
    for licence in outside:
        against = set(licence.forbids) & set(REFUSED)
        if (against or licence.name == UNKNOWN) and not permission.strip():
            raise refusals.not_allowed(licence)
    forbidden = {what for licence in outside for what in licence.forbids}
    strictest = sorted(one.name for one in outside if forbidden and set(one.forbids) >= forbidden)
    if forbidden and not strictest:
        raise refusals.at_odds(names)
    unknown = UNKNOWN in names  # then the result is silent too, and stays unknown
    said = strictest[0] if strictest else "" if unknown else "+".join(names)
    return {"licence": said, "all": names}


# ── the stage ───────────────────────────────────────────────────────────────────────────────────


@stage(version=1)
def merge(
    *,
    models: list[Artifact],
    base: Artifact | None,
    how: Method,
    origin: dict[str, str],
    terms: dict[str, Any],
    permission: str,
    out: Path,
    run: Run,
) -> dict:
    """A model folder: weights, tokenizer.json and template of its parents, a README.md where a
    licence is to be told, notes.json. `origin` and `terms` are what `merge_models` found.

    Raises OnsilError when the models differ in words, in how they are asked or in shape, and when
    something learnt lies beside one of them.
    """
    from onsil.models.checkpoint import load, save
    from onsil.models.merging import average, slerp, task_arithmetic

    check_words([*models, base] if base and (base / WORDS).is_file() else models)
    spoken = check_templates(models)
    loaded = []
    for made in models:
        run.say(f"{made.digest[:12]} …")
        loaded.append(load(made.path))
    extra = check_beside(models, [beside for _, beside in loaded])
    parents = [model for model, _ in loaded]
    if isinstance(how, Average):
        made = average(parents, how.weights or None)
    elif isinstance(how, Slerp):
        made = slerp(parents[0], parents[1], how.t)
    else:
        assert base is not None
        made = task_arithmetic(load(part_like(models[0], base))[0], parents, how.scales)
        made.origin = parents[0].origin  # names and types as the models have them
    save(made, out, run.ancestry, extra)
    for name in ALONG:
        if (spoken / name).is_file():
            shutil.copyfile(spoken / name, out / name)
    notes = {"parameters": sum(p.numel() for p in made.parameters()), "origin": origin}
    notes |= {"licence": terms | {"permission": permission}}
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True, ensure_ascii=False) + "\n")
    if terms["licence"]:
        (out / "README.md").write_text(card(models, terms), encoding="utf-8")
    return notes


def part_like(model: Artifact, base: Artifact) -> Path:
    """Of a base, the part that is of the model's family."""
    parts = {read_json(part / CONFIG)["model_type"]: part for part in checkpoints_in(base.path)}
    return parts.get(read_json(model / CONFIG)["model_type"], base.path)


def check_words(models: Sequence[Artifact]) -> None:
    """Raise OnsilError when two tokenizers could give a text other ids."""
    first, *others = models
    told = read_json(first / WORDS)
    for other in others:
        theirs = read_json(other / WORDS)
        if part := next((part for part in SPELLING if told.get(part) != theirs.get(part)), None):
            raise refusals.other_words(first, other, part)


def check_templates(models: Sequence[Artifact]) -> Path:
    """The folder whose template the merged model keeps: the first that has one, else the first.
    Raises OnsilError when two are asked in different ways."""
    spoken = [(made, template) for made in models if (template := template_in(made.path))]
    for made, template in spoken[1:]:
        if template != spoken[0][1]:
            raise refusals.asked_otherwise(spoken[0][0], made)
    return spoken[0][0].path if spoken else models[0].path


def template_in(folder: Path) -> Any:
    """What a chat is written by: onsil's template, else the published one, else None."""
    if (folder / TEMPLATE).is_file():
        return read_json(folder / TEMPLATE)
    for name in JINJA:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    return read_json(settings).get("chat_template") if settings.is_file() else None


def check_beside(models: Sequence[Artifact], beside: "Sequence[dict[str, Tensor]]") -> Any:
    """The tensors that lie beside every model. Raises OnsilError when they are not the same in all:
    a head that was learnt with one of them fits no other."""
    for made, extra in zip(models, beside, strict=True):
        for name in sorted({*beside[0], *extra}):
            mine, theirs = beside[0].get(name), extra.get(name)
            if mine is None or theirs is None or not mine.equal(theirs):
                raise refusals.with_head(models[0], made, name)
    return beside[0]


def card(models: Sequence[Artifact], terms: dict[str, Any]) -> str:
    """README.md: the licence where the next reader looks for it, and what was merged."""
    said = terms["licence"]
    front = f"license: other\nlicense_name: {said}" if "+" in said else f"license: {said}"
    parents = "\n".join(f"- `{made.digest}`" for made in models)
    return f"""---
{front}
---

# A merged model · 합친 모델

Made without training out of these models, whose terms are: {", ".join(terms["all"])}.
추가 학습 없이 아래 모델을 합쳐 만들었습니다. 각 모델의 라이선스: {", ".join(terms["all"])}.

{parents}
"""
