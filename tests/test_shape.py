"""Every word of a shape is used twice, and shapes that cannot be are refused.

A field that has one value over all published checkpoints we know is not an option but a habit; the
cases of family_cases.py and the shapes that are grown here must disagree on each.
"""

import json
from dataclasses import fields, replace
from typing import Any

import family_cases
import pytest

from onsil.errors import OnsilError
from onsil.models.checkpoint import load, save
from onsil.models.families import shape_of
from onsil.models.shape import Rotary, Shape, decoder_shape, encoder_shape, race_shape
from onsil.models.transformer import Transformer

# Fields without a case of a second value yet; each leaves the list with its case.
WAITING: set[str] = set()
PLAIN = Shape(97, 64, 4, heads=4, context=64)


def cases() -> dict[str, family_cases.Case]:
    """All dictionaries of cases, whatever they are called."""
    found: dict[str, family_cases.Case] = {}
    for table in vars(family_cases).values():
        if isinstance(table, dict) and all(
            isinstance(v, family_cases.Case) for v in table.values()
        ):
            found |= table
    return found


def config_of(case: family_cases.Case) -> dict[str, Any]:
    """config.json as the published class writes it."""
    import transformers

    config = getattr(transformers, case.config)(**case.arguments)
    return json.loads(config.to_json_string()) | {"architectures": [case.model]}


def stacks(shape: Any) -> list[Shape]:
    """The transformers of a model; a codec of sound has none."""
    return [shape] if isinstance(shape, Shape) else list(shape.stacks)


def values(shapes: list[Any], kind: type) -> dict[str, set[Any]]:
    return {field.name: {getattr(shape, field.name) for shape in shapes} for field in fields(kind)}


def test_every_field_has_two_values():
    shapes = [stack for case in cases().values() for stack in stacks(shape_of(config_of(case)))]
    shapes += [decoder_shape(1000, 256, 4), encoder_shape(1000, 128, 2), race_shape(1000, 128, 2)]
    turns = [shape.rotary for shape in shapes if shape.positions == "rotary"]
    turns += [shape.local_rotary for shape in shapes if shape.local_rotary]
    found = values(shapes, Shape) | {f"rotary.{k}": v for k, v in values(turns, Rotary).items()}
    single = {name for name, seen in found.items() if len(seen) < 2}
    assert single == WAITING


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 0, "head_width": 16}, "width=0"),
        ({"depth": 0}, "depth=0"),
        ({"depth": -1}, "depth=-1"),
        ({"heads": 0}, "heads=0"),
        ({"context": 0}, "context=0"),
        ({"vocabulary": 0}, "vocabulary=0"),
        ({"vocabulary": 0, "reads": "vectors"}, "vocabulary=0"),
        ({"kv_heads": 3}, "heads=4, kv_heads=3"),
        ({"kv_heads": 8}, "heads=4, kv_heads=8"),
        ({"qk_norm": "all", "norm": "layer"}, "qk_norm=all, norm=layer"),
        ({"qk_norm": "heads"}, "qk_norm=heads, norm=rms"),
        ({"heads": 128, "head_width": 0}, "width=64, heads=128"),
        ({"kv_heads": -2}, "kv_heads=-2"),
        ({"hidden": -1}, "hidden=-1"),
        ({"pattern": "GX"}, "pattern='GX'"),
        ({"pattern": "CG", "taps": 0}, "taps=0"),
        ({"pattern": "CG", "taps": 2**20}, "taps=1048576"),
        ({"pattern": "LG"}, "window=0, pattern='LG'"),
        ({"pattern": "LG", "window": -1}, "window=-1, pattern='LG'"),
        ({"pattern": ""}, "window=0, pattern=''"),
        ({"experts": 4, "experts_used": 5}, "experts=4, experts_used=5"),
        ({"experts": 4, "experts_used": 0}, "experts=4, experts_used=0"),
        ({"position_offset": -1}, "position_offset=-1"),
        ({"head_width": 15}, "head_width=15, turned=15"),
        ({"pairs": -1}, "pairs=-1"),
        ({"pairs": 8, "causal": False}, "pairs=8"),
        ({"key_shift": True, "causal": False}, "key_shift=True"),
        ({"value_tables": True, "reads": "vectors"}, "value_tables=True"),
        ({"rotary": Rotary(width=7)}, "head_width=16, turned=7"),
        ({"rotary": Rotary(width=18)}, "head_width=16, turned=18"),
    ],
)
def test_impossible_shapes_are_refused_with_the_value(changes, told):
    with pytest.raises(OnsilError) as refused:
        replace(PLAIN, **changes)
    for message in (refused.value.en, refused.value.ko):
        assert told in message[0] and len(message) == 3


def test_a_front_end_needs_no_vocabulary():
    assert Shape(0, 64, 2, heads=4, reads="vectors", writes="vectors").vocabulary == 0


def test_sizes_that_are_not_told_follow_from_the_others():
    assert (PLAIN.kv_heads, PLAIN.head_width, PLAIN.embedding_width) == (4, 16, 64)
    assert PLAIN.score_scale == 1 / 4
    assert PLAIN.hidden == 192  # 8/3 · 64 = 170.7, the next multiple of 32
    assert replace(PLAIN, hidden=0, gated=False).hidden == 256
    wide = Shape(97, 64, 4, heads=4, head_width=64)
    assert wide.score_scale == 1 / 8


def test_the_pattern_repeats_to_the_depth():
    shape = replace(PLAIN, depth=7, pattern="LLN", window=8)
    assert "".join(shape.kind(layer) for layer in range(7)) == "LLNLLNL"


def test_rotary_positions_of_a_kind_of_layer():
    near = Rotary(base=100.0)
    assert [PLAIN.rotary_of(kind) for kind in "GLN"] == [Rotary(), Rotary(), None]
    both = replace(PLAIN, local_rotary=near)
    assert [both.rotary_of(kind) for kind in "GLN"] == [Rotary(), near, None]
    learned = replace(both, positions="learned")
    assert [learned.rotary_of(kind) for kind in "GLN"] == [None, None, None]


def test_a_shape_is_kept_as_plain_values():
    shape = replace(PLAIN, local_rotary=Rotary(short=(1.0, 2.0)))
    read = json.loads(json.dumps(shape.as_dict()))
    for name in ("rotary", "local_rotary"):
        divisors: dict[str, Any] = {k: tuple(read[name][k]) for k in ("short", "long")}
        read[name] = Rotary(**(read[name] | divisors))
    assert Shape(**read) == shape


@pytest.mark.parametrize("width", [64, 192, 200, 320, 448, 576])
def test_heads_share_a_width_evenly(width, tmp_path):
    for made in (decoder_shape(97, width, 4, 32), encoder_shape(97, width, 4, 32)):
        assert made.heads % made.kv_heads == 0
        (folder := tmp_path / made.wiring).mkdir()
        save(Transformer(made).initialise(0), folder, {})
        assert load(folder)[0].shape == made
