"""Recurrent networks: a state that is carried from token to token, and a language model on it.

Letters: B batch, T positions, I inputs, D width, G gates · width, V vocabulary.

The idea: read one token at a time and keep what matters in a vector of fixed size. The plain cell
(Elman 1990) rewrites its state at every step, so what it learns from the far past fades or blows
up (Bengio et al. 1994). The LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et
al. 2000) adds to a second state behind gates; the GRU (Cho et al. 2014) does it with one state and
two gates. Gates stand in the order of torch, i f g o and r z n, and like torch (and cuDNN) the GRU
resets after U·h; weights can be exchanged with either. Both keep two biases for that reason, though
only the GRU needs the second.

Inputs of all positions meet their weights in one product; the loop over time does only U·h and the
gates. The language model begins every text with a row of its own, so each token of a text has a
probability and `bits` stands beside `NGram.bits` on the same tokens. Its head is the embedding
(Press & Wolf 2017). Left out: dropout, peepholes, and state carried from one text to the next.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.lineage.history import METADATA_KEY
from onsil.lineage.spelling import canonical
from onsil.models.weights import stable_bytes

State = tuple[Tensor, ...]  # (h,) or, for the LSTM, (h, c); each B × D
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
IGNORED = -100  # a target that is padding
CHUNK = 512


def rnn_step(x_BG: Tensor, u_BG: Tensor, state: State) -> State:
    """h = tanh(Wx + Uh)."""
    return ((x_BG + u_BG).tanh(),)


def lstm_step(x_BG: Tensor, u_BG: Tensor, state: State) -> State:
    """c = σ(f)·c + σ(i)·tanh(g); h = σ(o)·tanh(c)."""
    i, f, g, o = (x_BG + u_BG).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(x_BG: Tensor, u_BG: Tensor, state: State) -> State:
    """n = tanh(Wx + r·(Uh)); h = (1 − z)·n + z·h."""
    width = state[0].size(1)
    (x_gates, x_new), (u_gates, u_new) = (t.split((2 * width, width), 1) for t in (x_BG, u_BG))
    r, z = (x_gates + u_gates).sigmoid().chunk(2, 1)
    return (torch.lerp((x_new + r * u_new).tanh(), state[0], z),)


STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}


class Cell(nn.Module):
    """One layer: `input` and `recurrent` hold the weights of all gates one under another."""

    def __init__(self, kind: str, inputs: int, width: int):
        super().__init__()
        self.kind, self.width = kind, width
        self.input = nn.Linear(inputs, GATES[kind] * width)
        self.recurrent = nn.Linear(width, GATES[kind] * width)

    def zero_state(self, batch: int) -> State:
        zero = self.recurrent.weight.new_zeros(batch, self.width)
        return (zero, zero) if self.kind == "lstm" else (zero,)

    def step(self, x_BG: Tensor, state: State) -> State:
        """The next state; `x_BG` has been through `input` already."""
        return STEPS[self.kind](x_BG, self.recurrent(state[0]), state)

    def forward(
        self, x_BTI: Tensor, state: State | None = None, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(outputs B T D, last state). With lengths each row's state stops at its own end."""
        state = self.zero_state(x_BTI.size(0)) if state is None else state
        outputs = []
        for t, x_BG in enumerate(self.input(x_BTI).unbind(1)):
            after = self.step(x_BG, state)
            if lengths_B is not None:
                alive_B1 = (t < lengths_B)[:, None]
                pairs = zip(after, state, strict=True)
                after = tuple(torch.where(alive_B1, new, old) for new, old in pairs)
            state = after
            outputs.append(state[0])
        return torch.stack(outputs, 1), state


class Recurrent(nn.Module):
    """A stack of cells of one kind ("rnn", "lstm" or "gru"), each reading the one below."""

    def __init__(self, cell: str, inputs: int, width: int, depth: int):
        super().__init__()
        self.cells = nn.ModuleList(
            Cell(cell, inputs if layer == 0 else width, width) for layer in range(depth)
        )

    def forward(
        self,
        x_BTI: Tensor,
        states: Sequence[State] | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, list[State]]:
        """(outputs B T D of the top layer, last state of every layer)."""
        x, after = x_BTI, []
        for layer, cell in enumerate(self.cells):
            x, state = cell(x, None if states is None else states[layer], lengths_B)
            after.append(state)
        return x, after


def initialise_recurrent(model: nn.Module, seed: int) -> None:
    """Uniform ±1/√inputs matrices, Normal(0, 0.1) embeddings, zero biases; the forget gates of
    LSTMs start open, with bias +1 (Gers et al. 2000; Jozefowicz et al. 2015)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.1, generator=generator)
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        for module in model.modules():
            if isinstance(module, Cell) and module.kind == "lstm":
                module.input.bias[module.width : 2 * module.width] = 1.0


def padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """B × T, each row filled up with `value` on the right."""
    longest = max(map(len, sequences))
    return torch.tensor([[*ids, *[value] * (longest - len(ids))] for ids in sequences])


@dataclass(frozen=True)
class RecurrentShape:
    vocabulary: int
    width: int
    depth: int
    cell: str


class RecurrentLM(nn.Module):
    """Embedding, stack, and the embedding again as head. Row `vocabulary` of the embedding is
    read before the first token."""

    def __init__(self, shape: RecurrentShape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary + 1, shape.width)
        self.stack = Recurrent(shape.cell, shape.width, shape.width, shape.depth)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def initialise(self, seed: int) -> "RecurrentLM":
        initialise_recurrent(self, seed)
        self.bias.data.zero_()
        return self

    def _read(
        self, ids_BT: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """(scores B T V of what follows each id, states)."""
        x_BTD, after = self.stack(self.embedding(ids_BT), states)
        return F.linear(x_BTD, self.embedding.weight[:-1], self.bias), after

    def logits(self, ids_BT: Tensor) -> Tensor:
        """B × T+1 × V: row t scores token t, given the t tokens before it; the last row scores
        what may come next."""
        first_B1 = ids_BT.new_full((ids_BT.size(0), 1), self.shape.vocabulary)
        return self._read(torch.cat((first_B1, ids_BT), 1))[0]

    def loss(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, int]:
        """(Σ −ln P of every token, number of tokens); the padding of a batch counts for nothing."""
        logits_BTV = self.logits(padded([ids[:-1] for ids in sequences], 0))
        targets_BT = padded(sequences, IGNORED)
        total = F.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total, sum(map(len, sequences))

    @torch.no_grad()
    def bits(self, ids: Sequence[int]) -> float:
        """−log2 P of a whole sequence, of any length, in constant memory."""
        before, states, nats = [self.shape.vocabulary, *ids][:-1], None, 0.0
        for start in range(0, len(ids), CHUNK):
            inputs = torch.tensor([before[start : start + CHUNK]])
            targets = torch.tensor(ids[start : start + CHUNK])
            logits_BTV, states = self._read(inputs, states)
            nats += float(F.cross_entropy(logits_BTV[0].double(), targets, reduction="sum"))
        return nats / math.log(2)

    def save(self, folder: Path, ancestry: dict[str, Any]) -> None:
        write_model(folder, "onsil_recurrent_lm", self.shape, self, ancestry)

    @classmethod
    def load(cls, folder: Path) -> "RecurrentLM":
        """The model of a folder, to the same bits. Raises OnsilError as `read_shape` and
        `read_weights` do."""
        model = cls(read_shape(folder, "onsil_recurrent_lm", RecurrentShape))
        read_weights(folder, model)
        return model


# -- on disk ------------------------------------------------------------------------------------

S = TypeVar("S")


def write_model(
    folder: Path, model_type: str, shape: Any, model: nn.Module, ancestry: dict[str, Any]
) -> None:
    """config.json and model.safetensors; equal models of equal ancestry give equal bytes."""
    config = json.dumps({"model_type": model_type} | asdict(shape), indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n")
    tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    metadata = {"format": "pt", METADATA_KEY: canonical(ancestry)}
    (folder / "model.safetensors").write_bytes(stable_bytes(tensors, metadata))


def read_shape(folder: Path, model_type: str, shape_class: type[S]) -> S:
    """The shape in config.json. Raises OnsilError when the file is absent, of another model, or
    has a value that no model can have."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise _unusable(folder, f"config.json: {type(e).__name__}: {e}") from e
    if not isinstance(config, dict) or config.get("model_type") != model_type:
        found = config.get("model_type") if isinstance(config, dict) else config
        raise _unusable(folder, f"model_type is {found!r}, not {model_type!r}")
    values: dict[str, Any] = {}
    for field in fields(shape_class):  # type: ignore[arg-type]
        value: Any = config.get(field.name)
        legal = value in GATES if field.name == "cell" else type(value) is field.type
        if not legal or (field.type is int and value < 1):
            raise _unusable(folder, f"config.json: {field.name} is {value!r}")
        values[field.name] = value
    return shape_class(**values)


def read_weights(folder: Path, model: nn.Module) -> None:
    """Fill the model from model.safetensors. Raises OnsilError when a tensor is missing, has
    another shape than the config says, or belongs to nothing."""
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as f:
            found = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise _unusable(folder, f"model.safetensors: {type(e).__name__}: {e}") from e
    own = model.state_dict()
    for name in sorted(own.keys() | found.keys()):
        wanted = tuple(own[name].shape) if name in own else "no such tensor"
        got = tuple(found[name].shape) if name in found else "missing"
        if wanted != got:
            raise _unusable(folder, f"tensor {name} is {got}; the config asks for {wanted}")
    model.load_state_dict(found)


def _unusable(folder: Path, found: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{folder.name}: {found}.",
            "The weights and the config do not make a model together, or a file is damaged.",
            "Check it with: onsil verify NAME",
        ),
        ko=(
            f"{folder.name}: {found}.",
            "가중치와 설정이 한 모델의 것이 아니거나 파일이 손상되었습니다.",
            "다음 명령으로 확인해 주세요: onsil verify 이름",
        ),
    )
