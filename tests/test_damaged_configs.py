"""Configs that cannot be: a clear error each, under the limits of damaged_child.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged_child import Opener, Sound, refused
from hypothesis import given, settings
from hypothesis import strategies as st

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def ends_in():
    opener = Opener()
    yield opener
    opener.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Sound:
    return Sound(tmp_path_factory.mktemp("sound"))


# ── config.json ─────────────────────────────────────────────────────────────────────────────────

LONGROPE = "phi3 longrope long"
HALF = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    **{
        f"{key} = {value!r}": ("llama", {key: value}, key)
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for value in ("64", True, 4.0, [4], {}, 0, -4, 10**12, 10**30)
    },
    **{
        f"{key} = None": ("llama", {key: None}, key)
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    },
    "vocab_size = 10^8": ("llama", {"vocab_size": 10**8}, "100000000"),
    "vocab_size = 10^9": ("llama", {"vocab_size": 10**9}, "1000000000"),
    "num_hidden_layers = 10^9": ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "num_hidden_layers = 4000": ("llama", {"num_hidden_layers": 4000}, "4000 layers"),
    "too many windowed layers": (
        "gemma3_text",
        {"num_hidden_layers": 10**9, "layer_types": None},
        "_hidden_layers",
    ),
    "one layer more": ("llama", {"num_hidden_layers": 5}, "model.layers.4"),
    "one layer less": ("llama", {"num_hidden_layers": 3}, "not part of the model"),
    "num_local_experts = 10^9": ("mixtral", {"num_local_experts": 10**9}, "num_local_experts"),
    "num_local_experts = 4000": ("mixtral", {"num_local_experts": 4000}, "tensors"),
    "more experts used than are": ("mixtral", {"num_experts_per_tok": 5}, "experts_used=5"),
    "heads that do not divide": ("gpt2", {"n_head": 5}, "5 heads"),
    "keys that do not divide": ("llama", {"num_key_value_heads": 3}, "kv_heads=3"),
    "more keys than heads": ("llama", {"num_key_value_heads": 8}, "kv_heads=8"),
    "an odd head": ("llama", {"head_dim": 23}, "turns 23 of 23"),
    "another MLP": ("llama", {"intermediate_size": 113}, "113"),
    "an endless context": ("llama", {"max_position_embeddings": 10**12}, "max_position"),
    "tied with text": ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "an unknown activation": ("llama", {"hidden_act": "relu6"}, "relu6"),
    "an activation of list": ("llama", {"hidden_act": ["silu"]}, "silu"),
    "epsilon 0": ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
    "epsilon NaN": ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "rope of text": ("llama", {"rope_parameters": "linear"}, "rope_parameters"),
    "old rope of list": ("llama", {"rope_scaling": [1]}, "rope_scaling"),
    **{
        f"rope {key} = {value!r}": (
            "llama",
            {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, key: value}},
            key,
        )
        for kind, key, values in (
            ("linear", "factor", (0, -1, float("nan"), float("inf"), "4", True, 10**400)),
            ("linear", "rope_theta", (0, -5, "x", float("nan"))),
            ("default", "partial_rotary_factor", (0, -0.5, 1.5, "half")),
            ("yarn", "beta_fast", (0, "fast")),
            ("yarn", "original_max_position_embeddings", (0, 1, "x", 10**12)),
            ("llama3", "low_freq_factor", (0, 4.0, 9.0)),
            ("abc", "rope_type", ("abc",)),
        )
        for value in values
    },
    "longrope without lists": (LONGROPE, {"rope_parameters": HALF}, "short_factor"),
    **{
        f"longrope with {what}": (
            LONGROPE,
            {"rope_parameters": HALF | {"short_factor": [1.0] * 8, "long_factor": value}},
            "long_factor",
        )
        for what, value in (
            ("7 factors", [1.0] * 7),
            ("a million factors", [1.0] * 1_000_000),
            ("a factor 0", [0.0] * 8),
            ("a factor of text", ["1"] * 8),
            ("one number", 2.0),
        )
    },
    "too few layer types": ("gemma3_text", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    "unknown layer types": ("gemma3_text", {"layer_types": ["linear"] * 4}, "layer_types"),
    "layer types of numbers": ("gemma3_text", {"layer_types": [1, 2, 3, 4]}, "layer_types"),
    "layer types of text": ("gemma3_text", {"layer_types": "full"}, "layer_types"),
    "a negative window": ("mistral", {"sliding_window": -8}, "sliding_window"),
    "a window of text": ("mistral", {"sliding_window": "8"}, "sliding_window"),
    "a window of truth": ("mistral", {"sliding_window": True}, "sliding_window"),
    "no period": (
        "gemma3_text",
        {"sliding_window_pattern": 0, "layer_types": None},
        "sliding_window_pattern",
    ),
    "too few layers without positions": ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
    "endless alternation": (
        "gpt_neo",
        {"attention_types": [[["global"], 10**9]], "attention_layers": None},
        "attention_types",
    ),
    "a padding far below": ("roberta", {"pad_token_id": -9}, "pad_token_id"),
    "a family of list": ("llama", {"model_type": ["llama"]}, "llama"),
    "no family": ("llama", {"model_type": None}, "None"),
    "quantisation of text": ("llama", {"quantization_config": "gptq"}, "gptq"),
    "quantisation without a name": ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_cannot_be_is_refused(what, sound, ends_in, tmp_path):
    name, changed, word = CONFIGS[what]
    folder = shutil.copytree(sound(name), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    refused(ends_in(folder), word)


ODD: tuple[Any, ...] = (
    None, 0, -1, 1, 2, 3, 5, 10**5, 10**9, 10**12, 10**400, True, False, "", "x", "64", [], [1],
    [[]],
    ["a"] * 4, {}, {"a": 1}, 1.5, -2.5, float("nan"), float("inf"), 1e300, [0] * 4, [None] * 4,
    {"rope_type": "yarn"}, {"full_attention": {}}, [["global", 2]], [[["global"], 10]],
)  # fmt: skip


@settings(max_examples=600, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_any_value_under_any_key_ends_in_a_shape_or_a_clear_error(configs, data):
    """Of a config.json or of its rope part; the shape alone, so that there can be many."""
    from onsil.errors import OnsilError
    from onsil.models.families import shape_of

    config = json.loads(data.draw(st.sampled_from(configs)))
    places = [config, *(part for part in config.values() if isinstance(part, dict) and part)]
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places))
        keys = [*sorted(place), "rope_scaling", "factor", "rope_type", "sliding_window_pattern"]
        place[data.draw(st.sampled_from(keys))] = data.draw(st.sampled_from(ODD))
    try:
        shape_of(config)
    except OnsilError as error:
        assert all((*error.en, *error.ko))


@pytest.fixture(scope="module")
def configs() -> list[str]:
    """config.json of every decoder and encoder in family_cases.py."""
    import transformers
    from family_cases import DECODERS, ENCODERS

    cases = (DECODERS | ENCODERS).values()
    made = [getattr(transformers, case.config)(**case.arguments) for case in cases]
    return [config.to_json_string() for config in made]


def text_of(text: str) -> Change:
    return lambda folder: (folder / "config.json").write_text(text)


CONFIG_FILES: dict[str, tuple[Change, str]] = {
    "missing": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "empty": (text_of(""), "config.json"),
    "a list": (text_of("[]"), "not a JSON object"),
    "nothing said": (text_of("{}"), "''"),
    "twice": (text_of('{"model_type": "llama", "model_type": "qwen3"}'), "'model_type' stands"),
    "twice inside": (
        text_of('{"model_type": "llama", "rope_scaling": {"factor": 1, "factor": 2}}'),
        "'factor' stands",
    ),
    "deep": (text_of('{"a":' * 100_000), "not JSON"),
    "endless": (text_of('{"a": "' + "x" * 26_000_000 + '"}'), "too long"),
}


@pytest.mark.parametrize("what", CONFIG_FILES)
def test_a_damaged_config_file_is_refused(what, sound, ends_in, tmp_path):
    change, word = CONFIG_FILES[what]
    folder = shutil.copytree(sound("llama"), tmp_path / "model")
    change(folder)
    refused(ends_in(folder), word)
