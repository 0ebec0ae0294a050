"""A grown tokenizer: old ids stay, old text stays, new tokens are reached, nothing is lost."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from onsil.documents.types import Block, Document, write_documents
from onsil.errors import OnsilError
from onsil.lineage import Run, Workspace, stage
from onsil.tokenizer.expansion import (
    Base,
    Candidate,
    base_of,
    chosen,
    expand,
    expand_tokenizer,
    fertility,
    is_reached,
    load_expansion,
)
from onsil.tokenizer.train import LLAMA3, train

ENGLISH = [
    "the cat sat on the mat and the dog ran to the door of the old house <|/",
    "there is another house near the river; they said that it rains there 365 days >",
    "two  spaces, then (three)   and a tab\there\n\nthe end.",
] * 5
KOREAN = [
    "대한민국의 국민이 되는 요건은 법률로 정한다. 국가는 법률이 정하는 바에 의하여 보호한다.",
    "모든 국민은 법 앞에 평등하다. 국민의 모든 자유와 권리는 법률로써 제한할 수 있다.",
    "헌법재판소 재판관은 大統領이 임명한다 🙂 제123조 임명",
] * 4
EVERYTHING = (
    "".join(map(chr, range(0xAC00, 0xD7A4)))
    + "".join(map(chr, range(0x4E00, 0x5200)))
    + "ㅋㅋㅎㅎ ᄀᆞᆨ 豈 👩‍👩‍👧‍👦 🇰🇷 ❤️‍🔥 \t\n  a\u0301"
)


def byte_level(regex: bool = False, ignore: bool = False) -> Tokenizer:
    """Ours, GPT-2's or one that takes whole words as LLaMA 3's does."""
    made = train(ENGLISH, 330)
    if regex:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    spec = json.loads(made.to_str())
    spec["model"]["ignore_merges"] = ignore
    made = Tokenizer.from_str(json.dumps(spec))
    made.encode_special_tokens = True
    return made


def spaced(model: Any, split: bool = True) -> Tokenizer:
    """A SentencePiece-like tokenizer around a model; unsplit as LLaMA 2 is written."""
    made = Tokenizer(model)
    if split:
        made.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        made.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    made.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<s>", "</s>"])
    made.encode_special_tokens = True
    return made


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fallback(split: bool = True) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    learner.train_from_iterator(ENGLISH, trainer)
    told = json.loads(learner.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *BYTES])}
    for token in sorted(told["vocab"], key=told["vocab"].get):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in told["merges"]]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return spaced(model, split)


def unigram() -> Tokenizer:
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.UnigramTrainer(vocab_size=60, show_progress=False, unk_token="<unk>")
    learner.train_from_iterator(ENGLISH, trainer)
    pieces = json.loads(learner.to_str())["model"]["vocab"][1:]
    vocabulary = [("<unk>", 0.0), *[(b, -30.0) for b in BYTES], *map(tuple, pieces)]
    return spaced(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))


BASES = {
    "ours": byte_level,
    "gpt2": lambda: byte_level(regex=True),
    "llama3": lambda: byte_level(ignore=True),
    "gemma": fallback,
    "llama2": lambda: fallback(split=False),
    "unigram": unigram,
}


@pytest.fixture(params=BASES)
def base(request) -> Tokenizer:
    return BASES[request.param]()


def test_old_ids_and_text_without_new_words_stay(base):
    made = expand(base, KOREAN, 80).tokenizer
    old = base.get_vocab()
    assert {token: made.token_to_id(token) for token in old} == old
    for text in ENGLISH[:3]:
        assert made.encode(text).ids == base.encode(text).ids
    assert sorted(set(made.get_vocab().values())) == list(range(len(made.get_vocab())))


def test_every_new_token_is_reached_and_comes_after_the_old_ones(base):
    made, spelled, saved = expand(base, KOREAN, 80)
    first = max(base.get_vocab().values()) + 1
    assert list(spelled) == list(range(first, first + len(spelled))) and len(spelled) >= 70
    tokens = [made.id_to_token(i) for i in spelled]
    assert [t for t in tokens if not is_reached(made, t)] == []
    assert saved.keys() == spelled.keys() and sum(saved.values()) > 0
    assert all(max(ids) < first for ids in spelled.values())


def test_nothing_is_lost(base):
    made = expand(base, KOREAN, 80).tokenizer
    for text in [EVERYTHING, *KOREAN, *ENGLISH]:
        wanted = base.decode(base.encode(text).ids)
        assert made.decode(made.encode(text).ids) == wanted
        assert wanted == text


@pytest.mark.parametrize("name", ["ours", "gpt2", "gemma", "llama2"])
def test_new_merges_only_join_what_the_base_writes(name):
    base = BASES[name]()
    made, spelled, _ = expand(base, KOREAN, 80)
    for text in [*KOREAN[:3], *ENGLISH[:3], EVERYTHING[:500]]:
        ids = [old for i in made.encode(text).ids for old in spelled.get(i, [i])]
        assert ids == base.encode(text).ids


def test_what_is_saved_is_what_the_corpus_loses(base):
    made, _, saved = expand(base, KOREAN, 30)
    before = sum(len(e.ids) for e in base.encode_batch(KOREAN))
    after = sum(len(e.ids) for e in made.encode_batch(KOREAN))
    assert after < 0.8 * before
    # Each token's saving counts against its parts, so that the whole saves at least their sum.
    assert before - after >= max(saved.values())


def test_what_is_used_most_is_not_what_saves_most():
    """A character in three bytes saves two tokens a use: forty uses beat sixty of a pair."""
    candidates = {
        "가": Candidate("가", (), 2),
        "bc": Candidate("bc", ("b", "c"), 1),
        "bcd": Candidate("bcd", ("bc", "d"), 1),
    }
    kept = chosen(candidates, Counter({"가": 40, "bc": 60, "bcd": 5}), 1)
    assert set(kept) == {"가"}
    kept = chosen(candidates, Counter({"가": 40, "bc": 60, "bcd": 0}), 3)
    assert set(kept) == {"가", "bc"}  # nothing is kept for nothing
    kept = chosen(candidates, Counter({"가": 1, "bc": 0, "bcd": 9}), 2)
    assert set(kept) == {"bc", "bcd"}  # what others are built on stays
    kept = chosen(candidates, Counter({"가": 1, "bc": 0, "bcd": 3}), 1)
    assert set(kept) == {"bc"}  # and takes over what they were used for


def test_a_word_of_the_new_corpus_becomes_one_token(base):
    made = expand(base, ["대한민국 " * 50], 20).tokenizer
    assert len(made.encode("대한민국").ids) <= 2
    assert len(base.encode("대한민국").ids) >= 12


def test_special_tokens_beside_the_vocabulary_keep_their_ids(base):
    base.add_special_tokens(["<|begin|>"])
    number = base.token_to_id("<|begin|>")
    made = expand(base, KOREAN, 40).tokenizer
    assert made.token_to_id("<|begin|>") == number
    assert number not in made.encode("a <|begin|> b<|begin|>").ids
    made.encode_special_tokens = False
    assert number in made.encode("a <|begin|> b").ids


def test_a_piece_that_its_own_parts_outdo_is_left_out():
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("c", -6.0), ("d", -6.0), ("▁", -1.0)]
    pieces += [(character, -4.0) for character in "<s/>"]
    base = spaced(models.Unigram(pieces, unk_id=0))
    made, spelled, _ = expand(base, ["ab"] * 2 + ["cd"] * 200, 10)
    assert "cd" in made.encode("cd").tokens[0]
    assert not any("ab" in made.id_to_token(i) for i in spelled)


def test_a_special_token_that_text_could_become_is_refused():
    base = unigram()
    base.add_special_tokens(["⟦x⟧"])
    with pytest.raises(OnsilError, match="⟦x⟧"):
        expand(base, KOREAN, 40)


def test_a_spelling_that_is_there_already_is_not_added_again():
    """«ab» exists; a corpus with a+b where the base does not join them must not take its id."""
    vocabulary = {token: i for i, token in enumerate(["x", "a", "b", "c", "bc", "ab", "abc", "xa"])}
    model = models.BPE(vocabulary, [("b", "c"), ("a", "b"), ("ab", "c"), ("x", "a")])
    base = Tokenizer(model)
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    made, spelled, _ = expand(base, ["abcxab", "abc"] * 10, 10)
    surfaces = [made.id_to_token(i) for i in spelled]
    assert "abc" not in surfaces and len(surfaces) == len(set(surfaces))
    assert all(is_reached(made, surface) for surface in surfaces)


def test_tokens_a_character_by_script():
    base = byte_level()
    found = fertility(base, ["가나 漢 ab"])
    assert found["hangul"] == found["han"] == 3.0
    assert found["all"] == round(len(base.encode("가나 漢 ab").ids) / 7, 4)
    shares = fertility(train(["abab " * 9], 270), ["abab"])
    assert shares == {"all": 0.25, "latin": 0.25}


def test_other_kinds_are_refused_and_so_is_an_empty_corpus():
    with pytest.raises(OnsilError, match="WordPiece"):
        base_of(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
    plain = Tokenizer(models.BPE({"a": 0}, []))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(LLAMA3), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OnsilError, match="BPE tokenizer without bytes"):
        base_of(plain)
    with pytest.raises(OnsilError, match="nothing to add"):
        expand(byte_level(), ["q"], 10)
    assert isinstance(base_of(unigram()), Base)


@stage(version=1)
def folder_of(*, texts: list[str], out: Path, run: Run) -> dict:
    """A corpus: every fourth document is held out."""
    documents = [
        Document(f"{i}.txt", str(i), "text", str(i), (Block("paragraph", text),))
        for i, text in enumerate(texts)
    ]
    write_documents(documents, out / "documents.jsonl")
    split = {d.path: "train" if i % 4 else "heldout" for i, d in enumerate(documents)}
    (out / "split.json").write_text(json.dumps(split))
    return {}


@stage(version=1)
def saved_tokenizer(*, out: Path, run: Run) -> dict:
    byte_level().save(str(out / "tokenizer.json"))
    return {}


def test_the_stage_tells_what_it_gained(tmp_path):
    ws = Workspace(tmp_path)
    base, corpus = saved_tokenizer(ws), folder_of(ws, texts=KOREAN)
    made = expand_tokenizer(ws, base=base, corpus=corpus, many=60)
    notes = ws.record(made.key)["notes"]  # pyright: ignore[reportOptionalSubscript]
    before, after = notes["tokens_a_character"]["hangul"]
    assert before == 3.0 and after < 1.5
    spelled = load_expansion(made)
    assert len(spelled) == 60 == notes["vocabulary"][1] - notes["vocabulary"][0]
    assert (made / "base" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert load_expansion(base) == {}
    again = expand_tokenizer(Workspace(tmp_path / "b"), base=base, corpus=corpus, many=60)
    assert again.digest == made.digest
