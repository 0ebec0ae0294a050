"""A learnt prompt against PEFT: what one saves the other reads; and what it promises by itself."""

import pytest
import test_adapters
import torch
from family_cases import make
from test_adapters import CASES, TOKENS, bound, digest, peft_over

from onsil.errors import OnsilError
from onsil.models.adapters import load_adapter, load_prompt, new_prompt, save_adapter, save_prompt
from onsil.models.checkpoint import load
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer

pytestmark = test_adapters.pytestmark
folder_of, llama = test_adapters.folder_of, test_adapters.llama


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bloom", "opt"])
@torch.no_grad()
def test_a_prompt_is_read_as_peft_reads_it(name, folder_of, tmp_path):
    model = load(folder_of(name))[0].eval()
    before, base = digest(model), model(TOKENS)
    prompt = new_prompt(model, 5)
    assert sum(p.numel() for p in prompt.parameters()) == 5 * model.shape.width
    assert not any(p.requires_grad for p in model.parameters())
    prompt.rows_PD.add_(0.1)
    got = prompt(model, TOKENS)
    save_prompt(prompt, model, tmp_path, str(folder_of(name)), {})
    oracle = peft_over(make(CASES[name]), tmp_path)
    every = torch.ones_like(TOKENS)
    wanted = oracle(input_ids=TOKENS, attention_mask=every).logits[:, 5:]
    assert (got - base).abs().max() > 1000 * bound(wanted)
    assert (got - wanted).abs().max() < bound(wanted)
    theirs = tmp_path / "theirs"
    oracle.save_pretrained(theirs)
    assert torch.equal(load_prompt(model, theirs).rows_PD, prompt.rows_PD)
    assert digest(model) == before


@torch.no_grad()
def test_a_prompt_stands_before_padding_and_before_a_cache(folder_of):
    model = load(folder_of("llama"))[0].eval()
    prompt = new_prompt(model, 3, seed=1)
    full = prompt(model, TOKENS)
    cache = model.new_cache()
    parts = [prompt(model, part, cache=cache) for part in TOKENS.split([6, 1, 13], 1)]
    assert (torch.cat(parts, 1) - full).abs().max() < bound(full)
    row = torch.cat([torch.zeros(1, 8, dtype=torch.long), TOKENS[1:, :12]], 1)
    keep = torch.cat([torch.ones(1, 20), row.ne(0)]).bool()
    got = prompt(model, torch.cat([TOKENS[:1], row]), keep)
    alone = prompt(model, TOKENS[1:, :12])
    assert (got[:1] - full[:1]).abs().max() < bound(full)
    assert (got[1:, 8:] - alone).abs().max() < bound(alone)


def test_a_prompt_begins_as_words_of_the_seed(folder_of):
    model = load(folder_of("llama"))[0]
    table = model.embedding.weight
    a, b, c = (new_prompt(model, 4, seed).rows_PD for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert all(bool((table == row).all(1).any()) for row in a)


def test_prompts_that_fit_nowhere_are_refused(llama, folder_of, tmp_path):
    for name in ("bert", "t5", "gemma", "opt 350m"):
        with pytest.raises(OnsilError, match=f"not for this {name.split()[0]}"):
            new_prompt(load(folder_of(name))[0], 2)
    model = load(folder_of("llama"))[0]
    with pytest.raises(OnsilError, match="0 rows"):
        new_prompt(model, 0)
    save_prompt(new_prompt(model, 2), model, tmp_path, "base", {})
    narrow = Transformer(decoder_shape(97, 32, 2)).initialise(0)
    with pytest.raises(OnsilError, match=r"\(2, 64\).* asks for prompt_embeddings \(2, 32\)"):
        load_prompt(narrow, tmp_path)
    with pytest.raises(OnsilError, match="'PROMPT_TUNING', not 'LORA'"):
        load_adapter(narrow, tmp_path)
    save_adapter(llama, tmp_path, "base", {})
    with pytest.raises(OnsilError, match="'LORA', not 'PROMPT_TUNING'"):
        load_prompt(model, tmp_path)
