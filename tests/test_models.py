"""The one transformer against the published classes, and against itself."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.inference.slots import Slots
from onsil.models.attention import Norm
from onsil.models.checkpoint import load, save
from onsil.models.families.grown import config_of
from onsil.models.shape import Shape, decoder_shape, encoder_shape, race_shape
from onsil.models.transformer import Transformer

DECODER = Shape(97, 48, 3, heads=4, kv_heads=2, head_width=16, hidden=56, context=64)
ENCODER = encoder_shape(97, 128, 2, context=64)
RACE = race_shape(97, 64, 3, context=64)


def perturbed(shape: Shape) -> Transformer:
    model = Transformer(shape).initialise(seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("shape", [DECODER, ENCODER], ids=["qwen3", "bert"])
@torch.no_grad()
def test_parity_with_transformers_and_the_same_bits_back(shape, tmp_path):
    import transformers

    model = perturbed(shape)
    save(model, tmp_path, ancestry={"made_by": "test"})
    kind = transformers.Qwen3ForCausalLM if shape.causal else transformers.BertForMaskedLM
    oracle, info = kind.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(3))
    arguments, oracle_arguments = {}, {}
    if not shape.causal:
        segments = ids % 3
        arguments, oracle_arguments = {"segments_BT": segments}, {"token_type_ids": segments}
    wanted = oracle.eval()(ids, **oracle_arguments).logits
    got = model(ids, **arguments)
    assert (got - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))

    again, rest = load(tmp_path)
    assert not rest
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("shape", [DECODER, RACE], ids=["decoder", "race"])
@torch.no_grad()
def test_cached_decode_equals_the_full_forward(shape):
    model = perturbed(shape)
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(4))
    full = model(ids)
    cache = model.new_cache()
    steps = [model(ids[:, :7], cache=cache)]
    steps += [model(ids[:, t : t + 1], cache=cache) for t in range(7, 20)]
    assert torch.allclose(torch.cat(steps, 1), full, atol=1e-5)


@torch.no_grad()
def test_padding_in_front_changes_nothing_where_rows_look_back_by_one():
    model = perturbed(RACE)
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(4))
    full, keep = model(ids[:, 4:]), torch.arange(12).expand(2, -1) >= 4
    assert torch.allclose(model(ids, keep_BT=keep)[:, 4:], full, atol=1e-5)
    cache = model.new_cache()
    steps = [model(ids[:, :6], cache=cache, keep_BT=keep[:, :6])]
    steps += [model(ids[:, t : t + 1], cache=cache) for t in range(6, 12)]
    assert torch.allclose(torch.cat(steps, 1)[:, 4:], full, atol=1e-5)


@pytest.mark.parametrize("shape", [DECODER, ENCODER, RACE], ids=["causal", "both ways", "race"])
@torch.no_grad()
def test_documents_in_one_row_do_not_see_each_other(shape):
    model = perturbed(shape)
    ids = torch.randint(0, 97, (1, 30), generator=torch.Generator().manual_seed(5))
    for lengths in ([11, 4, 15], [15, 15]):
        together = model(ids, lengths=lengths)
        alone = torch.cat([model(part) for part in ids.split(lengths, 1)], 1)
        assert torch.allclose(together, alone, atol=1e-5)


@torch.no_grad()
def test_a_causal_stack_cannot_see_ahead_and_an_encoder_can():
    ids = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(6))
    changed = ids.clone()
    changed[0, -1] = 0
    for shape, sees in [(DECODER, False), (RACE, False), (ENCODER, True)]:
        model = perturbed(shape)
        same = torch.equal(model(ids)[0, :-1], model(changed)[0, :-1])
        assert same is not sees


def test_the_grown_shapes_survive_their_own_config():
    from onsil.models.families import shape_of

    for shape in (decoder_shape(500, 128, 2), encoder_shape(500, 128, 2)):
        assert shape_of(config_of(shape)) == shape


@pytest.mark.parametrize("word", [{"key_shift": True}, {"pairs": 50}, {"norm": "plain"}])
def test_a_shape_that_no_family_can_write_is_not_written(word, tmp_path):
    shape = replace(decoder_shape(97, 64, 2, 64), **word)
    with pytest.raises(OnsilError, match=f"{next(iter(word))}="):
        save(Transformer(shape).initialise(0), tmp_path, ancestry={})
    assert not list(tmp_path.iterdir())


def test_a_shape_that_looks_back_by_one_is_not_served():
    with pytest.raises(OnsilError, match="key_shift=True"):
        Slots(Transformer(RACE).initialise(0), 2, 16)


@pytest.mark.parametrize("word", ["key_shift", "value_tables", "embedding_skips", "pairs"])
@torch.no_grad()
def test_each_word_of_the_race_shape_changes_what_is_said(word):
    model = perturbed(RACE)
    without = Transformer(replace(RACE, **{word: type(getattr(RACE, word))()}))
    missing, unused = without.load_state_dict(model.state_dict(), strict=False)
    assert not missing and unused
    ids = torch.arange(12)[None]
    assert (without(ids) - model(ids)).abs().max() > 1e-3


def test_the_plain_norm_is_rms_norm_on_both_ways():
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(7))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    norm, weights = Norm(RACE, 8), torch.arange(8.0)
    assert not list(norm.parameters())
    (norm(ours) * weights).sum().backward()
    (F.rms_norm(theirs, (8,), eps=RACE.norm_epsilon) * weights).sum().backward()
    assert torch.allclose(norm(ours), F.rms_norm(theirs, (8,), eps=RACE.norm_epsilon))
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_a_weights_file_has_the_same_bytes_in_every_process(tmp_path):
    """The library orders metadata by a per-process hash seed; two processes must still agree."""
    import subprocess
    import sys

    code = (
        "import sys, torch; from pathlib import Path\n"
        "from onsil.models.weights import stable_bytes\n"
        "names = {k: str(i) for i, k in enumerate('abcdefgh')}\n"
        "Path(sys.argv[1]).write_bytes(stable_bytes({'t': torch.ones(3)}, names))"
    )
    for n in range(4):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / str(n))], check=True)
    assert len({(tmp_path / str(n)).read_bytes() for n in range(4)}) == 1
