"""Models that hear and see against the published classes: the same numbers, the same bits back."""

import json
import shutil

import pytest
import torch
import transformers
from family_cases import SENSES, saved_once
from family_table import Notes
from safetensors.torch import load_file, save_file
from test_families import assert_same_bits, bound, read

from onsil.errors import OnsilError
from onsil.models.checkpoint import load, save
from onsil.models.codebook import ResidualQuantiser
from onsil.models.families import shape_of
from onsil.release.inspection import inspect_folder

WAVES = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 2, 30, 30, generator=torch.Generator().manual_seed(2))
WORDS = torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(3))
SHORT = 11_234  # samples of the second wave where it is padded


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Each case's published model, saved once."""
    return saved_once(SENSES, tmp_path_factory)


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes("what hears and sees")


def of_family(*families: str) -> list[str]:
    return [name for name in SENSES if name.split()[0] in families]


@pytest.mark.parametrize("name", SENSES)
def test_what_is_loaded_is_saved_to_the_same_bits(name, checkpoints, tmp_path, notes):
    oracle, folder = checkpoints(name)
    model, extra = load(folder)
    save(model, tmp_path, {}, extra)
    assert_same_bits(oracle, folder, tmp_path)
    notes.passed(name, "same bits back")


@pytest.mark.parametrize("name", SENSES)
def test_a_seed_gives_one_model(name, checkpoints):
    """Every parameter is set by `initialise`, none left as it was."""
    model = load(checkpoints(name)[1])[0]
    first = {k: p.detach().clone() for k, p in model.initialise(3).named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    for key, parameter in model.initialise(3).named_parameters():
        assert torch.equal(parameter, first[key]), key


@pytest.mark.parametrize("family", sorted({name.split()[0] for name in SENSES} - {"llava"}))
def test_what_a_config_leaves_out_is_what_the_published_one_says(family):
    case = next(case for name, case in SENSES.items() if name.split()[0] == family)
    whole = getattr(transformers, case.config)().to_dict()
    assert shape_of({"model_type": family}) == shape_of(whole)


# ── wav2vec 2.0 ─────────────────────────────────────────────────────────────────────────────────

SPEECH = of_family("wav2vec2")
CTC = [name for name in SPEECH if SENSES[name].model == "Wav2Vec2ForCTC"]


def speech_states(oracle, wave, keep=None) -> torch.Tensor:
    """The published encoder's last states, whatever stands on it."""
    base = getattr(oracle, "wav2vec2", oracle)
    return base(wave, attention_mask=None if keep is None else keep.long()).last_hidden_state


@pytest.mark.parametrize("name", SPEECH)
@torch.no_grad()
def test_waves_are_read_as_published(name, checkpoints, notes):
    oracle, folder = checkpoints(name)
    model = load(folder)[0].eval()
    compared = [(model.read(WAVES), speech_states(oracle, WAVES))]
    if name in CTC:
        compared.append((model(WAVES), oracle(WAVES).logits))
    for got, wanted in compared:
        notes.error(name, model, got, wanted)
        assert (got - wanted).abs().max() < bound(wanted)


@pytest.mark.parametrize("name", CTC)
@torch.no_grad()
def test_padded_waves_are_read_as_published(name, checkpoints, notes):
    """And, where every convolution has a norm of its own, as they are alone."""
    oracle, folder = checkpoints(name)
    model = load(folder)[0].eval()
    keep = torch.ones(2, 16_000, dtype=torch.bool)
    keep[1, SHORT:] = False
    padded = WAVES * keep
    wanted = oracle(padded, attention_mask=keep.long()).logits
    frames = model.frames(keep.sum(1)).tolist()
    assert frames == oracle._get_feat_extract_output_lengths(keep.sum(1)).tolist()
    got = model(padded, keep)
    for row, length in enumerate(frames):
        assert (got[row, :length] - wanted[row, :length]).abs().max() < bound(wanted)
    if model.shape.conv_norm == "layer":
        alone = model(WAVES[1:, :SHORT])[0]
        assert (got[1, : frames[1]] - alone).abs().max() < bound(alone)
        notes.passed(name, "padding right")


def test_the_pretraining_tensors_are_handed_back(checkpoints):
    extra = load(checkpoints("wav2vec2 pretraining")[1])[1]
    heads = {name.split(".")[0] for name in extra if name != "wav2vec2.masked_spec_embed"}
    assert heads == {"quantizer", "project_hid", "project_q"}


@torch.no_grad()
def test_the_older_names_of_a_normed_kernel_are_read(checkpoints, tmp_path):
    """PyTorch before 2.0 wrote weight_g and weight_v; they are written again so."""
    oracle, folder = checkpoints("wav2vec2 base")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in old
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model, extra = load(tmp_path)
    wanted = oracle(WAVES).logits
    assert (model.eval()(WAVES) - wanted).abs().max() < bound(wanted)
    (tmp_path / "again").mkdir()
    save(model, tmp_path / "again", {}, extra)
    assert read(tmp_path / "again").keys() == old.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"add_adapter": True},
        {"adapter_attn_dim": 16},
        {"feat_extract_norm": "batch"},
        {"conv_kernel": [10, 3]},
        {"conv_stride": 5},
        {"conv_bias": "false"},
        {"conv_dim": [32] * 6 + [0]},
        {"num_conv_pos_embedding_groups": 5},
    ],
    ids=str,
)
def test_speech_that_is_not_built_here_is_refused(wrong):
    config = SENSES["wav2vec2 base"].arguments | {"model_type": "wav2vec2"}
    shape_of(config)
    with pytest.raises(OnsilError, match="wav2vec2"):
        shape_of(config | wrong)


# ── SigLIP ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", of_family("siglip_vision_model"))
@torch.no_grad()
def test_images_are_read_as_published(name, checkpoints, notes):
    oracle, folder = checkpoints(name)
    model = load(folder)[0].eval()
    side = model.shape.image
    images = torch.nn.functional.pad(IMAGES, (0, side - 30, 0, side - 30), value=0.5)
    wanted = oracle(pixel_values=images)
    states = model.read(images)
    notes.error(name, model, states, wanted.last_hidden_state)
    assert (states - wanted.last_hidden_state).abs().max() < bound(wanted.last_hidden_state)
    if model.pool is None:
        assert wanted.pooler_output is None
        return
    got = model(images)
    notes.error(name, model, got, wanted.pooler_output)
    assert (got - wanted.pooler_output).abs().max() < bound(wanted.pooler_output)


@torch.no_grad()
def test_an_image_and_a_text_meet_as_published(checkpoints, notes):
    oracle, folder = checkpoints("siglip")
    model = load(folder)[0].eval()
    wanted = oracle(pixel_values=IMAGES, input_ids=WORDS)
    for got, there in (
        (model(IMAGES, WORDS), wanted.logits_per_image),
        (model.images(IMAGES), wanted.image_embeds),
        (model.texts(WORDS), wanted.text_embeds),
    ):
        notes.error("siglip", model, got, there)
        assert (got - there).abs().max() < bound(there)


@torch.no_grad()
def test_a_tower_written_with_its_own_prefix_is_read(checkpoints, tmp_path):
    """transformers 4 wrote vision_model. before every name; it is written again so."""
    oracle, folder = checkpoints("siglip_vision_model")
    old = {f"vision_model.{name}": t for name, t in read(folder).items()}
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model, extra = load(tmp_path)
    wanted = oracle(pixel_values=IMAGES).pooler_output
    assert (model.eval()(IMAGES) - wanted).abs().max() < bound(wanted)
    (tmp_path / "again").mkdir()
    save(model, tmp_path / "again", {}, extra)
    assert read(tmp_path / "again").keys() == old.keys()


def test_an_image_of_another_size_is_refused(checkpoints):
    model = load(checkpoints("siglip_vision_model")[1])[0]
    with pytest.raises(OnsilError, match=r"\(2, 30, 31\).*\(2, 30, 30\)"):
        model.read(torch.zeros(1, 2, 30, 31))


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": 40},
        {"image_size": [224, 224]},
        {"image_size": 2**20},
        {"vision_use_head": "no"},
        {"hidden_act": "quick_gelu"},
        {"num_attention_heads": 5},
    ],
    ids=str,
)
def test_images_that_are_not_built_here_are_refused(wrong):
    config = SENSES["siglip_vision_model"].arguments | {"model_type": "siglip_vision_model"}
    shape_of(config)
    with pytest.raises(OnsilError, match="siglip_vision_model"):
        shape_of(config | wrong)


def test_towers_that_do_not_meet_are_refused():
    config: dict = SENSES["siglip"].arguments | {"model_type": "siglip"}
    shape_of(config)
    for text in (
        {"text_config": config["text_config"] | {"projection_size": 48}},
        {"vision_config": config["vision_config"] | {"vision_use_head": False}},
        {"text_config": 5},
    ):
        with pytest.raises(OnsilError, match="siglip"):
            shape_of(config | text)


# ── LLaVA ───────────────────────────────────────────────────────────────────────────────────────

SEEING = of_family("llava")


def seeing_ids(*rows: int) -> torch.Tensor:
    """Rows of 30 ids, each with so many images of 9 patches between words."""
    ids = torch.randint(6, 97, (len(rows), 30), generator=torch.Generator().manual_seed(4))
    for row, images in zip(ids, rows, strict=True):
        for i in range(images):
            row[3 + 12 * i : 12 + 12 * i] = 5
    return ids


@pytest.mark.parametrize("rows", [(1, 1), (2, 0), (0, 2)], ids=str)
@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_texts_with_images_are_read_as_published(name, rows, checkpoints, notes):
    oracle, folder = checkpoints(name)
    model = load(folder)[0].eval()
    ids = seeing_ids(*rows)
    got, wanted = model(ids, IMAGES), oracle(input_ids=ids, pixel_values=IMAGES).logits
    notes.error(name, model, got, wanted)
    assert (got - wanted).abs().max() < bound(wanted)


@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_a_text_after_images_decodes_from_the_cache_as_in_full(name, checkpoints, notes):
    model = load(checkpoints(name)[1])[0].eval()
    ids = seeing_ids(2)
    full, cache = model(ids, IMAGES), model.new_cache()
    steps = [model(ids[:, :13], IMAGES[:1], cache=cache)]
    steps += [model(ids[:, 13:25], IMAGES[1:], cache=cache)]
    steps += [model(ids[:, t : t + 1], cache=cache) for t in range(25, 30)]
    assert (torch.cat(steps, 1) - full).abs().max() < bound(full)
    notes.passed(name, "cached decode")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_padded_texts_with_images_are_what_they_are_alone(name, side, checkpoints, notes):
    model = load(checkpoints(name)[1])[0].eval()
    ids = seeing_ids(1, 1)
    padding = torch.zeros(1, 8, dtype=torch.long)
    short = ids[1:, :22].clone()
    ids[1] = torch.cat((padding, short) if side == "left" else (short, padding), 1)[0]
    got = model(ids, IMAGES, keep_BT=ids != 0)
    alone = model(short, IMAGES[1:])
    assert (got[1:, ids[1] != 0] - alone).abs().max() < bound(alone)
    notes.passed(name, f"padding {side}")


def test_as_many_image_tokens_as_patches(checkpoints):
    model = load(checkpoints("llava llama")[1])[0]
    for ids, images in ((seeing_ids(1), IMAGES), (seeing_ids(2), None)):
        with pytest.raises(OnsilError, match=r"image tokens; (2 images need 18|0 images need 0)"):
            model(ids, images)


DIALECTS = {
    "tower with prefix": {"vision_tower.": "vision_tower.vision_model."},
    "model in front": {
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
    },
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_other_dialects_of_names_are_read_and_written_again(name, dialect, checkpoints, tmp_path):
    oracle, folder = checkpoints(name)
    spelled = {}
    for key, tensor in read(folder).items():
        start = next((s for s in DIALECTS[dialect] if key.startswith(s)), "")
        spelled[DIALECTS[dialect].get(start, "") + key.removeprefix(start)] = tensor
    save_file(spelled, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model, extra = load(tmp_path)
    assert not extra
    ids = seeing_ids(1, 1)
    wanted = oracle(input_ids=ids, pixel_values=IMAGES).logits
    assert (model.eval()(ids, IMAGES) - wanted).abs().max() < bound(wanted)
    (tmp_path / "again").mkdir()
    save(model, tmp_path / "again", {}, extra)
    after = read(tmp_path / "again")
    assert after.keys() == spelled.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in spelled.items())
    again, info = type(oracle).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    same = again.eval()(input_ids=ids, pixel_values=IMAGES).logits
    assert (same - wanted).abs().max() < bound(wanted)


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_what_a_llava_config_leaves_out_is_what_the_published_one_says(text):
    parts = {
        "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"model_type": text},
        "vision_feature_select_strategy": "full",
    }
    whole = transformers.LlavaConfig(**parts).to_dict()
    assert shape_of({"model_type": "llava"} | parts) == shape_of(whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vision_config": {"model_type": "clip_vision_model"}},
        {"vision_config": None},
        {"text_config": {"model_type": "gemma"}},
        {"vision_feature_select_strategy": "default"},
        {"vision_feature_select_strategy": None},
        {"vision_feature_layer": -5},
        {"vision_feature_layer": []},
        {"vision_feature_layer": "last"},
        {"projector_hidden_act": "quick_gelu"},
        {"multimodal_projector_bias": 1.5},
    ],
    ids=str,
)
def test_seeing_that_is_not_built_here_is_refused(wrong):
    config = SENSES["llava llama"].arguments | {"model_type": "llava"}
    shape_of(config)
    with pytest.raises(OnsilError, match="llava"):
        shape_of(config | wrong)


# ── EnCodec ─────────────────────────────────────────────────────────────────────────────────────

CODECS = of_family("encodec")


def sound(channels: int, samples: int) -> torch.Tensor:
    return torch.randn(2, channels, samples, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("samples", [480, 373, 5])
@pytest.mark.parametrize("name", CODECS)
@torch.no_grad()
def test_codes_are_the_published_ones_and_so_is_the_sound_of_them(
    name, samples, checkpoints, notes
):
    """With one level, some and all; a whole number of hops, not whole, and less than a kernel."""
    oracle, folder = checkpoints(name)
    model = load(folder)[0].eval()
    wave = sound(model.shape.channels, samples)
    levels = [model.shape.levels_at(bandwidth) for bandwidth in model.shape.bandwidths]
    assert levels == [1, 2, model.shape.levels] and model.shape.levels > 2
    for count, bandwidth in zip(levels, model.shape.bandwidths, strict=True):
        wanted = oracle.encode(wave, bandwidth=bandwidth)
        frames = model.encode(wave, bandwidth)
        assert len(frames) == len(wanted.audio_codes)
        for (codes, loudness), there, scale in zip(
            frames, wanted.audio_codes, wanted.audio_scales, strict=True
        ):
            assert codes.size(1) == count
            assert torch.equal(codes, there[..., : codes.size(-1)])
            assert loudness is scale is None or torch.equal(loudness, scale)
        heard = oracle.decode(
            wanted.audio_codes,
            wanted.audio_scales,
            last_frame_pad_length=wanted.last_frame_pad_length,
        ).audio_values
        got = model.decode(frames)
        assert got.shape == heard.shape
        notes.error(name, model, got, heard)
        assert (got - heard).abs().max() < bound(heard)
        assert torch.equal(model(wave, bandwidth), got[..., :samples])
    assert torch.equal(model.encode(wave)[0][0], model.encode(wave, 0.05)[0][0])


@torch.no_grad()
def test_a_level_names_the_nearest_of_what_is_left_and_leaves_less():
    """The rows of a level are some of the vectors it is to name, and nothing (row 0)."""
    quantiser = ResidualQuantiser(3, 64, 2)
    vectors = torch.randn(4, 200, 2, generator=torch.Generator().manual_seed(6))
    rest = vectors
    for i, book in enumerate(quantiser.books):
        book.embed[1:] = rest.flatten(0, 1)[63 * i : 63 * (i + 1)]
        codes = quantiser.encode(vectors, i + 1)
        assert torch.equal(codes[:, -1], torch.cdist(rest, book.embed).argmin(-1))
        left = vectors - quantiser.decode(codes)
        assert left.pow(2).mean() < rest.pow(2).mean()
        rest = left


def test_another_bandwidth_is_refused(checkpoints):
    model = load(checkpoints("encodec mono")[1])[0]
    with pytest.raises(OnsilError, match=r"0\.1 kbps; it has 0\.05, 0\.16, 0\.26"):
        model.encode(sound(1, 400), 0.1)


def test_a_codec_is_inspected_though_it_has_no_stacks(checkpoints):
    oracle, folder = checkpoints("encodec stereo")
    found = inspect_folder(folder)
    assert (found["kind"], found["stacks"], found["vocabulary"]) == ("codec", [], 0)
    assert found["parameters"] == sum(tensor.numel() for tensor in oracle.state_dict().values())
    assert found["context"] is found["cache_per_1000_tokens"] is None
    able = {what for what, can in found["can"].items() if can}
    assert able == {"hear", "train"}


def test_more_parts_of_a_codec_than_the_file_has_tensors_are_refused(checkpoints, tmp_path):
    """Before ten thousand layers are built."""
    folder = shutil.copytree(checkpoints("encodec mono")[1], tmp_path / "long")
    config = json.loads((folder / "config.json").read_text()) | {"num_lstm_layers": 10**4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(OnsilError, match="10000 layers or experts cannot lie in"):
        load(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm_type": "spectral_norm"},
        {"pad_mode": "circular"},
        {"codebook_dim": 8},
        {"codebook_size": 12},
        {"upsampling_ratios": [2] * 13},
        {"upsampling_ratios": [100, 100]},
        {"compress": 5},
        {"dilation_growth_rate": 2**17},
        {"trim_right_ratio": 1.5},
        {"trim_right_ratio": 0.5, "use_causal_conv": False},
        {"audio_channels": 3},
        {"chunk_length_s": 1.0},
        {"chunk_length_s": 1.0, "overlap": 1.0},
        {"chunk_length_s": 1e-9, "overlap": 0.1},
        {"target_bandwidths": []},
        {"target_bandwidths": [0.01]},
        {"target_bandwidths": [float("nan")]},
        {"normalize": "yes"},
    ],
    ids=str,
)
def test_codecs_that_are_not_built_here_are_refused(wrong):
    config = SENSES["encodec mono"].arguments | {"model_type": "encodec"}
    shape_of(config)
    with pytest.raises(OnsilError, match="encodec"):
        shape_of(config | wrong)


def test_the_page_says_what_was_measured(notes):
    notes.settle(list(SENSES))
