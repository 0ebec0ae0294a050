"""A decoder as an encoder: the same weights, looking both ways.

A decoder that has read a text knows its words; an encoder that starts from noise spends the first
thousands of steps on nothing but how often each of them occurs (docs/log.md, "An encoder from a
decoder"). So an encoder begins as a decoder whose attention sees what comes after, too, and which
then guesses hidden words instead of next ones (BehnamGhader et al. 2024, "LLM2Vec"). Short
convolutions go on looking back. On disk it is the decoder's family with `is_causal: false`, which
transformers reads the same way (GPT-Neo apart, whose class looks back whatever it says).
"""

from dataclasses import replace

from onsil.models.families.decoders import one_way_or_both
from onsil.models.transformer import Transformer
from onsil.models.vocabulary import widened

SEGMENTS = 3  # question, passage, and the passage's words that the question also has


def both_ways(decoder: Transformer) -> Transformer:
    """The decoder as an encoder with segments, whose rows are zero: until it learns, a segment says
    nothing. An encoder comes back as it is."""
    if not decoder.shape.causal:
        return decoder
    told = widened(decoder, decoder.shape.vocabulary, SEGMENTS)
    encoder = Transformer(one_way_or_both(replace(told.shape, causal=False)))
    encoder.dtype = decoder.dtype
    encoder.load_state_dict(told.state_dict(), assign=True)
    encoder.tie()
    encoder.requires_grad_(True)
    if told.origin is not None:
        encoder.origin = replace(told.origin, config=told.origin.config | {"is_causal": False})
    return encoder
