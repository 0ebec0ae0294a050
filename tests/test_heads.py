"""Heads against the published classes: scores, losses, gradients, bits; and one that learns."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from family_cases import GPT, GROUPED, SMALL, Case, make, saved_once
from planted import PLANTED
from safetensors import safe_open
from safetensors.torch import save_file

from onsil.errors import OnsilError
from onsil.models.both_ways import both_ways
from onsil.models.checkpoint import load, save
from onsil.models.heads import apart, layout_of, load_head, new_head, save_head
from onsil.models.shape import decoder_shape, encoder_shape, hybrid_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.train import CLS, SEP
from onsil.tokenizer.train import train as train_words
from onsil.training.loop import train
from onsil.training.objectives import schedule

TOPICS = {"id2label": {0: "정치", 1: "경제", 2: "생활"}}
TOPICS["label2id"] = {name: i for i, name in TOPICS["id2label"].items()}  # type: ignore[assignment]
ROBERTA = SMALL | {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66}
SEVERAL = TOPICS | {"problem_type": "multi_label_classification"}
CASES = {
    "bert sequence": Case("BertConfig", SMALL | TOPICS, "BertForSequenceClassification"),
    "bert several": Case("BertConfig", SMALL | SEVERAL, "BertForSequenceClassification"),
    "bert regression": Case(
        "BertConfig", SMALL | {"num_labels": 1}, "BertForSequenceClassification"
    ),
    "bert token": Case("BertConfig", SMALL | TOPICS, "BertForTokenClassification"),
    "bert span": Case("BertConfig", SMALL, "BertForQuestionAnswering"),
    "bert next": Case("BertConfig", SMALL, "BertForNextSentencePrediction"),
    "bert pretraining": Case("BertConfig", SMALL, "BertForPreTraining"),
    "roberta sequence": Case("RobertaConfig", ROBERTA | TOPICS, "RobertaForSequenceClassification"),
    "roberta token": Case("RobertaConfig", ROBERTA | TOPICS, "RobertaForTokenClassification"),
    "roberta span": Case("RobertaConfig", ROBERTA, "RobertaForQuestionAnswering"),
    "llama sequence": Case("LlamaConfig", GROUPED | TOPICS, "LlamaForSequenceClassification"),
    "llama token": Case("LlamaConfig", GROUPED | TOPICS, "LlamaForTokenClassification"),
    "qwen3 token": Case(
        "Qwen3Config", GROUPED | TOPICS | {"is_causal": False}, "Qwen3ForTokenClassification"
    ),
    "gpt2 sequence": Case(
        "GPT2Config", GPT | TOPICS | {"pad_token_id": 0}, "GPT2ForSequenceClassification"
    ),
}
FACTS = torch.Generator().manual_seed(1)
TOKENS = torch.randint(3, 97, (4, 40), generator=FACTS)
SEGMENTS = (torch.arange(40) > 15).long().expand(4, 40)
LABELS = {
    "sequence": torch.tensor([2, 0, 1, 2]),
    "several": torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]),
    "regression": torch.tensor([0.5, -1.0, 2.0, 3.5]),
    "token": torch.randint(0, 3, (4, 40), generator=FACTS).masked_fill(TOKENS % 3 == 0, -100),
    "span": torch.tensor([[3, 9], [0, 0], [20, 39], [7, 7]]),
    "next": torch.tensor([0, 1, 1, 0]),
    "pretraining": torch.tensor([0, 1, 1, 0]),
}


def read(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


def bound(wanted: torch.Tensor) -> float:
    return 1e-5 * max(1.0, float(wanted.abs().max()))


def scores_of(output) -> torch.Tensor:
    """What a published class says, as our head says it."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits if hasattr(output, "logits") else output.seq_relationship_logits


def paired(name: str) -> dict[str, torch.Tensor]:
    """Segments of a pair of texts, for the family that has them."""
    return {"token_type_ids": SEGMENTS} if name.startswith("bert") else {}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Each case's published model, saved once."""
    return saved_once(CASES, tmp_path_factory)


# -- against the published classes --------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_scores_are_the_published_ones(name, checkpoints):
    oracle, folder = checkpoints(name)
    encoder, head = load_head(folder)
    output = oracle(TOKENS, **paired(name))
    hidden = encoder.encode(TOKENS, paired(name).get("token_type_ids"))
    wanted, got = scores_of(output), head(hidden)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < bound(wanted)
    if name == "bert pretraining":
        words = output.prediction_logits
        assert (encoder.logits(hidden) - words).abs().max() < bound(words)


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_is_saved_to_the_same_bits(name, checkpoints, tmp_path):
    oracle, folder = checkpoints(name)
    save_head(*load_head(folder), tmp_path, {})
    before, after = read(folder), read(tmp_path)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    told = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path)]
    assert told[0] == told[1]
    again, info = type(oracle).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_a_half_precision_head_stays_one(checkpoints, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    back.mkdir()
    make(CASES["bert sequence"]).to(torch.bfloat16).save_pretrained(there)
    save_head(*load_head(there), back, {})
    before, after = read(there), read(back)
    assert before["classifier.weight"].dtype == torch.bfloat16
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_padded_rows_are_what_they_are_alone(name, side, checkpoints):
    oracle, folder = checkpoints(name)
    encoder, head = load_head(folder)
    short = TOKENS[1:2, :25]
    padding = torch.full((1, 15), oracle.config.pad_token_id)
    row = torch.cat((padding, short) if side == "left" else (short, padding), 1)
    batch, keep = torch.cat([TOKENS[:1], row]), torch.ones(2, 40, dtype=torch.bool)
    keep[1] = row[0] != oracle.config.pad_token_id
    got = head(encoder.encode(batch, keep_BT=keep), keep)
    real = keep if got.dim() == 3 else torch.ones(2, dtype=torch.bool)
    alone = [head(encoder.encode(ids)).flatten(0, -2) for ids in (TOKENS[:1], short)]
    wanted = torch.cat(alone)
    assert (got[real] - wanted).abs().max() < bound(wanted)
    if side == "right":
        published = scores_of(oracle(batch, attention_mask=keep.long()))
        assert (got[real] - published[real]).abs().max() < bound(published)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_published_ones(name, checkpoints):
    oracle, folder = checkpoints(name)
    encoder, head = load_head(folder)
    kind = name.split()[1]
    labels = LABELS[kind]
    told = {"labels": labels}
    if kind == "span":
        told = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    if kind == "pretraining":  # its loss is a sum with that of the words: one of them is a target
        words = torch.full_like(TOKENS, -100)
        words[0, 0] = TOKENS[0, 0]
        told = {"labels": words, "next_sentence_label": labels}
    oracle.zero_grad()
    output = oracle(TOKENS, **paired(name), **told)
    output.loss.backward()
    hidden = encoder.encode(TOKENS, paired(name).get("token_type_ids"))
    total, targets = head.loss(head(hidden), labels)
    loss = total / targets
    if kind == "pretraining":
        word = encoder.logits(hidden[0, :1])
        loss = loss + torch.nn.functional.cross_entropy(word, TOKENS[0, :1])
    loss.backward()
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-6)
    published = dict(oracle.named_parameters())
    for ours, theirs in head.on_disk().items():
        got, wanted = head.get_parameter(ours).grad, published[theirs].grad
        assert got is not None and wanted.abs().max() > 0
        assert (got - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max())), theirs


@torch.no_grad()
def test_the_loss_of_a_span_does_not_see_padding(checkpoints):
    encoder, head = load_head(checkpoints("bert span")[1])
    short, span = TOKENS[1:2, :25], torch.tensor([[4, 8]])
    batch = torch.cat([short, torch.zeros(1, 15, dtype=torch.long)], 1)
    keep = (torch.arange(40) < 25)[None]
    alone, _ = head.loss(head(encoder.encode(short)), span)
    padded, _ = head.loss(head(encoder.encode(batch, keep_BT=keep), keep), span)
    assert padded.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["bert sequence", "bert token", "llama sequence"])
@torch.no_grad()
def test_documents_laid_end_to_end_are_judged_alone(name, checkpoints):
    encoder, head = load_head(checkpoints(name)[1])
    lengths = [17, 4, 19]
    rows, keep = apart(encoder.encode(TOKENS[:1], lengths=lengths), lengths)
    got = head(rows, keep)
    for i, part in enumerate(TOKENS[:1].split(lengths, 1)):
        alone = head(encoder.encode(part))[0]
        mine = got[i, : len(alone)] if got.dim() == 3 else got[i]
        assert (mine - alone).abs().max() < bound(alone)


def test_labels_keep_their_names(checkpoints):
    assert load_head(checkpoints("bert sequence")[1])[1].names == ("정치", "경제", "생활")
    assert load_head(checkpoints("bert span")[1])[1].names == ("start", "end")
    assert load_head(checkpoints("bert next")[1])[1].names == ("next", "random")
    assert load_head(checkpoints("bert several")[1])[1].problem == "multi_label_classification"
    assert load_head(checkpoints("bert regression")[1])[1].problem == "regression"


# -- old spellings ------------------------------------------------------------------------------


def respelled(folder: Path, out: Path, spell) -> Path:
    out.mkdir()
    save_file({spell(name): t for name, t in read(folder).items()}, out / "model.safetensors")
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def gamma(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


@pytest.mark.parametrize(
    "spell", [gamma, lambda name: name.removeprefix("bert.")], ids=["gamma", "bare"]
)
@torch.no_grad()
def test_old_names_load_and_come_back(spell, checkpoints, tmp_path):
    oracle, folder = checkpoints("bert sequence")
    old = respelled(folder, tmp_path / "old", spell)
    assert read(old).keys() != read(folder).keys()
    encoder, head = load_head(old)
    wanted = oracle(TOKENS).logits
    assert (head(encoder.encode(TOKENS)) - wanted).abs().max() < bound(wanted)
    again = tmp_path / "again"
    again.mkdir()
    save_head(encoder, head, again, {})
    assert read(again).keys() == read(old).keys()


def test_a_tensor_that_no_head_reads_comes_back(checkpoints, tmp_path):
    """Token classifiers are often published with the pooler that they do not use."""
    folder = respelled(checkpoints("bert token")[1], tmp_path / "pooled", str)
    pooler = {"bert.pooler.dense.weight": torch.randn(64, 64)}
    tensors = {name: tensor.clone() for name, tensor in read(folder).items()}
    save_file(tensors | pooler, folder / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    save_head(*load_head(folder), out, {})
    before, after = read(folder), read(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Llama", "GPT2"])
@torch.no_grad()
def test_a_stack_alone_writes_its_hidden_states(family, tmp_path):
    arguments = {"Roberta": ROBERTA, "GPT2": GPT}.get(family, SMALL)
    oracle = make(Case(f"{family}Config", arguments, f"{family}Model"))
    oracle.save_pretrained(tmp_path)
    model, extra = load(tmp_path)
    assert model.shape.writes == "vectors" and all(".pooler." in name for name in extra)
    wanted = oracle(TOKENS).last_hidden_state
    assert (model.eval().encode(TOKENS) - wanted).abs().max() < bound(wanted)


# -- fresh heads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_shape", "task", "names"),
    [
        (encoder_shape, "sequence", ("부정", "긍정")),
        (encoder_shape, "sequence", ("닮음",)),
        (encoder_shape, "token", ("O", "B-LC", "I-LC")),
        (encoder_shape, "span", ()),
        (encoder_shape, "next_sentence", ()),
        (decoder_shape, "token", ("O", "B-LC", "I-LC")),
    ],
)
@torch.no_grad()
def test_a_fresh_head_on_a_grown_encoder_is_a_published_class(make_shape, task, names, tmp_path):
    import transformers

    grown = both_ways(Transformer(make_shape(97, 64, 2, context=64)).initialise(1)).eval()
    encoder, head = new_head(grown, task, names, seed=3)
    assert torch.equal(encoder.encode(TOKENS), grown.encode(TOKENS))
    save_head(encoder, head, tmp_path, {})
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    oracle, info = getattr(transformers, kind).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    ours = {"model.token_type_embeddings.weight"}  # segments, which its class does not have
    assert not info["missing_keys"] and not set(info["unexpected_keys"]) - ours
    wanted = scores_of(oracle.eval()(TOKENS))
    again, other = load_head(tmp_path)
    assert (other(again.encode(TOKENS)) - wanted).abs().max() < bound(wanted)
    assert torch.equal(other.outputs.weight, head.outputs.weight)
    assert other.names == head.names and other.problem == head.problem


@torch.no_grad()
def test_a_fresh_head_on_a_grown_decoder_reads_the_last_token(tmp_path):
    import transformers

    grown = Transformer(decoder_shape(97, 64, 2, context=64)).initialise(1).eval()
    encoder, head = new_head(grown, "sequence", ("부정", "긍정"))
    save_head(encoder, head, tmp_path, {})
    oracle = transformers.Qwen3ForSequenceClassification.from_pretrained(tmp_path).eval()
    wanted = oracle(TOKENS[:1]).logits  # one row: its config names no padding
    assert (head(encoder.encode(TOKENS[:1])) - wanted).abs().max() < bound(wanted)


def test_a_fresh_head_begins_where_it_is_told(checkpoints):
    model, extra = load(checkpoints("bert pretraining")[1])
    pooler = extra["bert.pooler.dense.weight"]
    fresh = [new_head(model, "sequence", ("a", "b"), seed=seed)[1] for seed in (0, 0, 1)]
    kept = new_head(model, "sequence", ("a", "b"), start=extra)[1]
    assert kept.dense is not None and torch.equal(kept.dense.weight, pooler)
    weights = [head.outputs.weight for head in fresh]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert fresh[0].dense is not None and not torch.equal(fresh[0].dense.weight, pooler)


@torch.no_grad()
def test_scores_in_half_precision_are_float32_and_near(checkpoints):
    folder = checkpoints("bert sequence")[1]
    encoder, head = load_head(folder)
    whole = head(encoder.encode(TOKENS))
    encoder, head = load_head(folder, "bf16")
    half = head(encoder.encode(TOKENS))
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.05 * max(1.0, float(whole.abs().max()))
    assert new_head(encoder, "span")[0].encode(TOKENS).dtype == torch.bfloat16


@pytest.mark.parametrize("make_shape", [encoder_shape, hybrid_shape])
def test_the_span_head_of_a_grown_reader_is_found(make_shape, tmp_path):
    reader = both_ways(Transformer(make_shape(97, 64, 2, context=64)).initialise(1))
    kept = {"qa_outputs.weight": torch.randn(2, 64), "qa_outputs.bias": torch.randn(2)}
    save(reader, tmp_path, {}, kept)
    encoder, head = load_head(tmp_path)
    assert head.task == "span" and torch.equal(head.outputs.bias, kept["qa_outputs.bias"])
    assert encoder.head is not None
    out = tmp_path / "out"
    out.mkdir()
    save_head(encoder, head, out, {})
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"id2label": {"0": "정치", "1": "경제"}}, "(2, 64)"),
        ({"id2label": {"0": "정치", "2": "경제"}}, "경제"),
        ({"problem_type": "ranking"}, "ranking"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name(change, value, checkpoints, tmp_path):
    name = "bert pretraining" if "architectures" in change else "bert sequence"
    folder = respelled(checkpoints(name)[1], tmp_path / "wrong", str)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(OnsilError) as raised:
        load_head(folder)
    assert value in raised.value.en[0] and value in raised.value.ko[0]


def test_a_head_with_a_tensor_missing_is_refused(checkpoints, tmp_path):
    folder = respelled(checkpoints("bert sequence")[1], tmp_path / "wrong", str)
    tensors = {name: tensor.clone() for name, tensor in read(folder).items()}
    del tensors["bert.pooler.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(OnsilError, match=r"bert\.pooler\.dense\.bias .* missing"):
        load_head(folder)


def test_a_head_that_a_family_does_not_have_is_refused():
    grown = Transformer(decoder_shape(97, 64, 2, context=64))
    with pytest.raises(OnsilError, match=r"qwen3 .* 'span' .* sequence, token"):
        new_head(grown, "span")
    with pytest.raises(OnsilError, match=r"gpt2 .* 'token' .* sequence"):
        layout_of("gpt2", "token")


# -- the page, and whether it learns ------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[1] / "docs" / "heads.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    exec(example, known)
    assert known["said"] == ["긍정", "부정"]


def reviews(data: Path, split: str, many: int) -> list[dict]:
    import zstandard

    with zstandard.open(data / "nsmc" / f"{split}.jsonl.zst", "rt", encoding="utf-8") as f:
        return [json.loads(next(f)) for _ in range(many)]


def judged(texts, labels, unseen, frozen: float, rate: float, scratch: Path) -> torch.Tensor:
    """What a tiny encoder says of unseen texts after two epochs over the labelled ones. Unless
    `frozen` is 0, the encoder stays as it was drawn, its matrices times `frozen`."""
    scratch.mkdir()
    grown = Transformer(encoder_shape(3000, 64, 2, context=64)).initialise(0)
    encoder, head = new_head(grown, "sequence", ("부정", "긍정"))
    if frozen:
        encoder.requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.mul_(frozen if parameter.dim() > 1 else 1.0)
    steps = schedule([len(ids) for ids in texts], 1024, 2, 0)
    trained = {f"head.{name}": p for name, p in head.named_parameters()}
    trained |= {} if frozen else dict(encoder.named_parameters())

    def scores(parts):
        lengths = [len(ids) for ids in parts]
        row = torch.tensor([[i for ids in parts for i in ids]])
        return head(*apart(encoder.encode(row, lengths=lengths), lengths))

    def loss_of(k: int):
        return head.loss(scores([texts[i] for i in steps[k]]), labels[steps[k]])

    for _ in train(trained, loss_of, len(steps), rate, scratch, checkpoints=1, **PLANTED):
        pass
    with torch.no_grad():
        return torch.cat([scores(unseen[i : i + 50]).argmax(1) for i in range(0, len(unseen), 50)])


def lower_end(gain: torch.Tensor, groups: list[str]) -> float:
    """The 2.5 % quantile of the mean gain when whole groups (movies) are drawn again."""
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    kept = [gain[rows] for rows in members.values()]
    sums = torch.stack([part.sum() for part in kept])
    sizes = torch.tensor([float(len(part)) for part in kept])
    draw = torch.randint(len(kept), (2000, len(kept)), generator=torch.Generator().manual_seed(0))
    return float((sums[draw].sum(1) / sizes[draw].sum(1)).quantile(0.025))


@pytest.mark.slow
def test_a_head_and_its_encoder_learn_what_reviews_say(onsil_data, tmp_path):
    """8,000 reviews, 2,000 of other movies. The controls: the commoner label, and the same net with
    the encoder left random; also with matrices eight times as large, so that its first token does
    depend on the text, and a rate ten times as high."""
    seen, new = reviews(onsil_data, "train", 8000), reviews(onsil_data, "test", 2000)
    words = train_words([row["document"] for row in seen], 3000)
    texts, unseen = (
        [[CLS, *words.encode(row["document"]).ids[:60], SEP] for row in rows]
        for rows in (seen, new)
    )
    labels, wanted = (torch.tensor([row["label"] for row in rows]) for rows in (seen, new))
    told = (texts, labels, unseen)
    right = (judged(*told, 0.0, 1e-3, tmp_path / "tuned") == wanted).float()
    controls = {
        "majority": (torch.mode(labels).values == wanted).float(),
        "random": (judged(*told, 1.0, 1e-3, tmp_path / "random") == wanted).float(),
        "random, loud": (judged(*told, 8.0, 1e-2, tmp_path / "loud") == wanted).float(),
    }
    movies = [row["movie"] for row in new]
    print({name: round(float(c.mean()), 4) for name, c in ({"tuned": right} | controls).items()})
    for name, control in controls.items():
        low = lower_end(right - control, movies)
        print(name, round(low, 4))
        assert low > 0, name
