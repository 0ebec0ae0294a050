"""Greedy decoding under one grammar: the answer is a run of tokens of the passage.

A decoder that may write anything invents; this one may only begin at some token of the passage and
go on with a token that follows there, or stop. What comes out is a quotation by construction, so
its citation is exact. How much rather it would have stopped at once is told beside it: that is its
word on whether the passage answers at all.
"""

import torch

from onsil.models.transformer import Transformer

LONGEST = 90


@torch.no_grad()
def copied_answer(
    model: Transformer, prompt: list[int], source: list[int], stop: int
) -> tuple[range, float]:
    """The range of `source` (not empty) that greedy decoding copies after `prompt`, and
    log P(best first token) − log P(stop): below zero it would rather not answer.

    While what is copied stands in several places, all of them are followed; of those left at the
    end the first is returned.
    """
    cache = model.new_cache()
    scores_V = torch.log_softmax(model(torch.tensor([prompt]), cache=cache)[0, -1], -1)
    first_S = scores_V[torch.tensor(source)]
    margin = float(first_S.max() - scores_V[stop])
    token = source[int(first_S.argmax())]
    places = [i for i, t in enumerate(source) if t == token]
    length = 1
    while length < LONGEST and len(prompt) + length < model.shape.context:
        scores_V = model(torch.tensor([[token]]), cache=cache)[0, -1]
        following = {source[i + 1] for i in places if i + 1 < len(source)}
        token = max(sorted(following | {stop}), key=lambda t: float(scores_V[t]))
        if token == stop:
            break
        places = [i + 1 for i in places if i + 1 < len(source) and source[i + 1] == token]
        length += 1
    return range(places[0] - length + 1, places[0] + 1), margin
