"""An encoder that begins as a decoder: the same weights, another view, another tool's reading."""

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers
from family_cases import DECODERS, make
from planted import PLANTED
from test_grow import OFFICE

from onsil.corpus import curate
from onsil.documents import read
from onsil.lineage import Workspace
from onsil.models.both_ways import SEGMENTS, both_ways
from onsil.models.checkpoint import load, save
from onsil.models.shape import decoder_shape, encoder_shape, hybrid_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import train_tokenizer
from onsil.training.loop import train
from onsil.training.objectives import masked_batch, token_loss
from onsil.training.plan import Plan, adopt_plan, spelling_of
from onsil.training.pretraining import pretrain, recipe_of

DRAW = torch.Generator().manual_seed(0)
IDS = torch.randint(5, 97, (2, 24), generator=DRAW)
SHAPES = {"hybrid": hybrid_shape(97, 64, 4, 64), "plain": decoder_shape(97, 64, 2, 64)}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_it_has_the_same_weights_and_sees_what_comes_after(name):
    decoder = Transformer(SHAPES[name]).initialise(1)
    encoder = both_ways(decoder)
    assert encoder.shape == replace(decoder.shape, causal=False, segments=SEGMENTS)
    mine, theirs = encoder.state_dict(), decoder.state_dict()
    assert mine.keys() - theirs.keys() == {"segment.weight"} and not mine["segment.weight"].any()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert both_ways(encoder) is encoder
    later = IDS.clone()
    later[:, -1] = 4
    assert torch.equal(decoder(IDS)[:, :-1], decoder(later)[:, :-1])
    assert not torch.allclose(encoder(IDS)[:, 0], encoder(later)[:, 0], atol=1e-4)
    last = decoder(IDS[:, :1]), encoder(IDS[:, :1])  # alone, nothing comes after
    assert torch.allclose(*last, atol=1e-6)


@torch.no_grad()
def test_segments_say_nothing_until_they_are_learnt():
    encoder = both_ways(Transformer(SHAPES["hybrid"]).initialise(1))
    segments = torch.ones_like(IDS)
    assert torch.equal(encoder(IDS), encoder(IDS, segments_BT=segments))
    encoder.segment.weight[1] = 1.0
    assert not torch.allclose(encoder(IDS), encoder(IDS, segments_BT=segments), atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_what_is_written_is_read_as_the_same_encoder_here_and_by_transformers(name, tmp_path):
    encoder = both_ways(Transformer(SHAPES[name]).initialise(1)).eval()
    save(encoder, tmp_path, {})
    assert json.loads((tmp_path / "config.json").read_text())["is_causal"] is False
    again, _ = load(tmp_path)
    assert again.shape == encoder.shape and torch.equal(again.eval()(IDS), encoder(IDS))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (oracle(IDS).logits - encoder(IDS)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gpt_neo"])
@torch.no_grad()
def test_a_published_decoder_becomes_an_encoder_that_transformers_reads_alike(name, tmp_path):
    """Mistral has a window, which counts another way round in an encoder."""
    make(DECODERS[name]).save_pretrained(tmp_path / "theirs")
    encoder = both_ways(load(tmp_path / "theirs")[0]).eval()
    (tmp_path / "ours").mkdir()
    save(encoder, tmp_path / "ours", {})
    again = load(tmp_path / "ours")[0].eval()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert again.shape == encoder.shape
    assert torch.equal(again(IDS), encoder(IDS))
    if name != "gpt_neo":  # its class looks back whatever the config says
        assert (oracle(IDS).logits - encoder(IDS)).abs().max() < 1e-5


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    ws = Workspace(tmp_path_factory.mktemp("both") / "ws")
    corpus = curate(ws, documents=read(ws, OFFICE))
    plan = Plan(64, 2, 64, 512, 0.004, 6, 2, 1, 0, 0, "fp32", 1, False, 0, 1.0, 0, 0)
    return ws, {
        "corpus": corpus,
        "tokenizer": train_tokenizer(ws, corpus=corpus),
        "plan": adopt_plan(ws, text=spelling_of(plan)),
    }


def test_it_goes_on_from_the_decoder_that_it_is_given(office):
    """After the same steps an encoder that began as a decoder of the same text guesses hidden words
    better than one that began as noise."""
    ws, given = office
    decoder = pretrain(ws, **given, kind="decoder")
    noise = pretrain(ws, **given, kind="encoder")
    begun = pretrain(ws, **given, kind="encoder", decoder=decoder)
    losses = [json.loads((made / "curve.json").read_text())[0][1] for made in (begun, noise)]
    assert losses[0] < losses[1] - 0.3, losses
    for made in (begun, noise):
        shape = load(made.path)[0].shape
        assert not shape.causal and shape.segments == SEGMENTS and "C" in shape.pattern


def test_a_base_goes_before_the_decoder_and_its_encoder_before_its_decoder(office, tmp_path):
    from onsil.training.base import adopt

    ws, given = office
    words = given["tokenizer"] / "tokenizer.json"
    size = load(pretrain(ws, **given, kind="decoder").path)[0].shape.vocabulary
    folder = tmp_path / "base"
    for part, width in (("decoder", 128), ("encoder", 192)):
        (folder / part).mkdir(parents=True)
        model = Transformer(hybrid_shape(size, width, 2, 64)).initialise(0)
        save(model if part == "decoder" else both_ways(model), folder / part, {})
        (folder / "tokenizer.json").write_bytes(words.read_bytes())
        base = adopt(ws, folder)
        made = pretrain(ws, **given, kind="encoder", base=base)
        shape = load(made.path)[0].shape
        assert (shape.width, shape.causal) == (width, False)
    other = pretrain(ws, **given, kind="decoder")
    made = pretrain(ws, **given, kind="encoder", base=base, decoder=other)
    assert load(made.path)[0].shape.width == 192


def test_hidden_words_take_the_decoders_recipe_at_a_third_of_its_rate():
    plan = Plan(64, 2, 64, 512, 0.002, 6, 2, 1, 0, 0, "fp32", 1, False, 0, 1.0, 0, 0)
    fast = replace(plan, decoder_recipe="muon", decoder_rate=0.009)
    assert recipe_of(plan, "encoder", 64)[1] == pytest.approx(0.002 / 3)
    assert recipe_of(plan, "encoder", 256)[1] == pytest.approx(0.001 / 3)
    assert recipe_of(fast, "decoder", 64)[1] == 0.009
    recipe, rate = recipe_of(fast, "encoder", 64)
    assert recipe.optimizer == "muon" and rate == pytest.approx(0.003)


def test_from_noise_it_leaves_the_frequencies_of_words_sooner_than_berts_wiring(tmp_path):
    """Each token tells the two beside it; after the same steps at the same rate this wiring has
    learnt it and BERT's has not."""
    follows = torch.randperm(80, generator=torch.Generator().manual_seed(5)).tolist()

    def rows(step: int) -> list[list[int]]:
        draw, found = torch.Generator().manual_seed(step), []
        for _ in range(16):
            row = [int(torch.randint(80, (1,), generator=draw))]
            while len(row) < 32:
                row.append(follows[row[-1]])
            found.append([5 + token for token in row])
        return found

    losses = {}
    shapes = {"both ways": hybrid_shape(97, 64, 2, 64), "bert": encoder_shape(97, 64, 2, 64)}
    for name, shape in shapes.items():
        model = both_ways(Transformer(shape).initialise(0))

        def loss_of(step, model=model):
            return token_loss(model, masked_batch(rows(step), 97, f"{step}"))

        scratch = tmp_path / name
        scratch.mkdir()
        weights = dict(model.named_parameters())
        for step in train(weights, loss_of, 120, 0.002, scratch, **PLANTED):
            losses[name] = step.loss
    assert losses["both ways"] < 0.5 * math.log(80) < losses["bert"], losses
