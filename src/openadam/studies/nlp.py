"""Language: words of very different frequency, which is where Adam and gradient descent part.

- **Text**: the help topics that every CPython carries (`pydoc_data.topics`, 465,048 characters in 3.11): words and punctuation, 114,029 of
  them, of which 2,647 kinds occur at least twice; the others count as one. Of every ten pieces of 200 words one is for validation,
  one for testing.
- **The word model**: each word predicts the next by a bilinear form of rank 32 (about 170,000 parameters), 400 batches of 256 pairs, float32,
  at a constant rate. Loss by how often the word to be predicted occurs in training; and, read inside the step, how much of the
  embedding's motion is in rows that no word of the batch has.
- **The transformer**: two layers of width 64, four heads, 32 words of context, 300 batches of 16 pieces (torch): AdamW and gradient descent
  with momentum; with and without warm-up, with and without bias correction, with a short and a long second moment. Loss, and the
  size of the first hundred updates.
- **Fairness**: a sweep (`--sweep` redoes it) chose each learning rate by the validation loss over three seeds that are used for nothing else;
  all have the same budget and the same grid of half decades, and where the best was at an end it went on.
"""

from __future__ import annotations

import collections
import functools
import math
import re
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import family
from ..errors import GradientError
from ..row_sparse import Rows
from ..schedules import WarmUp
from . import module
from .frame import Cell, Claim, Setting, Study
from .rates import search

__all__ = ["STUDY"]

RANK, BATCH, STEPS, FULL_STEPS = 32, 256, 400, 1200
CONTEXT, WIDTH, SEQUENCES, TRANSFORMER_STEPS, FULL_TRANSFORMER_STEPS = 32, 64, 16, 300, 1200
WARM_UP = 60
BINS = {"rare": (5, 20), "uncommon": (20, 100), "common": (100, 1000), "frequent": (1000, math.inf)}
SWEEP_SEEDS = (1000, 1001, 1002)


class Text(NamedTuple):
    """The text as numbers of words, in three parts, and how often each word occurs in the first."""

    train: Any
    validation: Any
    test: Any
    counts: Any


@functools.cache
def load_text() -> Text:
    """The topics of Python's help, in pieces of 200 words."""
    from pydoc_data.topics import topics

    words = re.findall(r"\w+|[^\w\s]", "\n".join(topics[name] for name in sorted(topics)).lower())
    often = [word for word, count in collections.Counter(words).most_common() if count > 1]
    number = {word: k for k, word in enumerate(often, 1)}  # 0: all others
    every = np.array([number.get(word, 0) for word in words])
    pieces = every[: len(every) // 200 * 200].reshape(-1, 200)
    turn = np.arange(len(pieces)) % 10
    train, validation, test = pieces[turn > 1], pieces[turn == 0], pieces[turn == 1]
    return Text(train, validation, test, np.bincount(train.ravel(), minlength=len(often) + 1))


# --- the word model ----------------------------------------------------------------------------------------------------


def _pairs(pieces: Any) -> tuple[Any, Any]:
    return pieces[:, :-1].ravel(), pieces[:, 1:].ravel()


def _losses(weights: Mapping[str, Any], words: Any, nexts: Any) -> Any:
    logits = weights["embedding"][words] @ weights["output"].T + weights["bias"]
    logits -= logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(nexts)), nexts]


def _word_gradients(weights: Mapping[str, Any], words: Any, nexts: Any) -> tuple[Any, Any, Any]:
    """Of the embedding the rows of the batch's words, of output and bias the whole."""
    rows = weights["embedding"][words]
    logits = rows @ weights["output"].T + weights["bias"]
    logits -= logits.max(axis=1, keepdims=True)
    d = np.exp(logits)
    d /= d.sum(axis=1, keepdims=True)
    d[np.arange(len(nexts)), nexts] -= 1
    d /= len(nexts)
    return d @ weights["output"], d.T @ rows, d.sum(axis=0)


def _train_words(member: str, lr: float, seed: int, steps: int) -> tuple[dict[str, Any], list[float]]:
    """The weights after training, and the share of the embedding's motion that no word of the batch has."""
    text = load_text()
    words, nexts = _pairs(text.train)
    random = np.random.default_rng(seed)
    size = len(text.counts)
    weights = {
        "embedding": (0.1 * random.standard_normal((size, RANK))).astype(np.float32),
        "output": (0.1 * random.standard_normal((size, RANK))).astype(np.float32),
        "bias": np.zeros(size, np.float32),
    }
    lazy = member == "lazy adam"
    optimizer = family.MEMBERS["adam" if lazy else member](weights, lr=lr)
    absent = []
    for t in range(1, steps + 1):
        batch = random.integers(len(words), size=BATCH)
        of_rows, of_output, of_bias = _word_gradients(weights, words[batch], nexts[batch])
        if lazy:
            embedding: Any = Rows(words[batch], of_rows)
        else:
            embedding = np.zeros_like(weights["embedding"])
            np.add.at(embedding, words[batch], of_rows)
        look = t % 10 == 0
        report = optimizer.step({"embedding": embedding, "output": of_output, "bias": of_bias}, measure=look)
        if look and report.measures is not None:
            seen = report.measures["embedding"]
            moved = seen["direction_sum_abs"]
            absent.append(0.0 if lazy or not moved else seen["direction_sum_abs_without_grad"] / moved)
    return weights, absent


def _words(setting: Setting, seed: int, full: bool) -> Cell:
    text = load_text()
    given = setting.hyperparameters
    weights, absent = _train_words(given["member"], given["lr"], seed, FULL_STEPS if full else STEPS)
    words, nexts = _pairs(text.test)
    losses = _losses(weights, words, nexts)
    counts = text.counts[nexts]
    metrics = {"loss": float(losses.mean())}
    for name, (low, high) in BINS.items():
        metrics[f"loss_{name}"] = float(losses[(counts >= low) & (counts < high)].mean())
    metrics["absent_motion"] = statistics.fmean(absent)
    places = [float(t) for t in range(10, 10 * len(absent) + 1, 10)]
    return Cell(setting.name, seed, metrics, {"embedding's motion without a word of the batch": (places, absent)})


# --- the transformer ---------------------------------------------------------------------------------------------------


def _train_transformer(
    setting: Mapping[str, Any], lr: float, seed: int, steps: int, held_out: Any
) -> tuple[float, tuple[list[float], list[float]], list[float]]:  # fmt: skip
    """Its loss on a text held out, the training loss on the way, and the size of the first hundred updates over the full rate."""
    torch = module("torch", "studies")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    text = load_text()
    stream, held_out = torch.from_numpy(text.train.ravel()), torch.from_numpy(held_out.ravel())
    size = len(text.counts)

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = torch.nn.Embedding(size, WIDTH), torch.nn.Embedding(CONTEXT, WIDTH)
            layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True, norm_first=True)
            self.layers = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(WIDTH), enable_nested_tensor=False)
            self.output = torch.nn.Linear(WIDTH, size)
            self.mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT)

        def forward(self, words: Any) -> Any:
            x = self.words(words) + self.places.weight
            return self.output(self.layers(x, mask=self.mask, is_causal=True))

    model = Model()
    random = torch.Generator().manual_seed(seed)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    count = sum(array.size for array in weights.values())
    hyperparameters = dict(setting)
    warm_up, member = hyperparameters.pop("warm_up", WARM_UP), hyperparameters.pop("member", "adamw")
    optimizer = family.MEMBERS[member](weights, lr=WarmUp(lr, warm_up) if warm_up else lr, **hyperparameters)
    places, losses, sizes = [], [], []

    def loss_of(data: Any, starts: Any) -> Any:
        window = data[starts[:, None] + torch.arange(CONTEXT + 1)]
        logits = model(window[:, :-1])
        return torch.nn.functional.cross_entropy(logits.reshape(-1, size), window[:, 1:].reshape(-1))

    for t in range(1, steps + 1):
        model.zero_grad()
        loss = loss_of(stream, torch.randint(len(stream) - CONTEXT - 1, (SEQUENCES,), generator=random))
        loss.backward()
        look = t <= 100
        report = optimizer.step({name: p.grad.numpy() for name, p in model.named_parameters()}, measure=look)
        if look and report.measures is not None:
            sizes.append(math.sqrt(sum(seen["update_sum_squares"] for seen in report.measures.values()) / count) / lr)
        if t % 10 == 0:
            places.append(float(t))
            losses.append(float(loss.detach()))
    with torch.no_grad():
        starts = torch.arange(0, len(held_out) - CONTEXT - 1, CONTEXT)
        final = statistics.fmean(float(loss_of(held_out, part)) for part in starts.split(64))
    return final, (places, losses), sizes


def _transformer(setting: Setting, seed: int, full: bool) -> Cell:
    hyperparameters = dict(setting.hyperparameters)
    lr = hyperparameters.pop("lr")
    hyperparameters.pop("model")
    steps = FULL_TRANSFORMER_STEPS if full else TRANSFORMER_STEPS
    final, loss, sizes = _train_transformer(hyperparameters, lr, seed, steps, load_text().test)
    curves = {
        "transformer's training loss": loss,
        "size of the transformer's updates, over lr": ([float(t) for t in range(1, len(sizes) + 1)], sizes),
    }
    return Cell(setting.name, seed, {"transformer_loss": final, "largest_update": max(sizes)}, curves)


def run(setting: Setting, seed: int, full: bool) -> Cell:
    """One model, trained once."""
    return _transformer(setting, seed, full) if setting.hyperparameters.get("model") == "transformer" else _words(setting, seed, full)


# --- settings, rates and claims ----------------------------------------------------------------------------------------

# Chosen by `openadam study nlp --sweep`, which does it again.
RATES = {
    "SGD": 10.0, "Momentum": 3.0, "RMSProp": 0.01, "Adagrad": 0.3, "Adam": 0.01, "lazy Adam": 0.03,
    "AdamW": 0.01, "AdamW, no warm-up": 0.01, "AdamW, no correction": 0.001, "AdamW, beta2 0.999": 0.01, "SGD with momentum": 0.3,
}  # fmt: skip


def _word_setting(name: str) -> Setting:
    return Setting(name, {"model": "words", "member": name.lower(), "lr": RATES[name]})


def _transformer_setting(name: str, **hyperparameters: Any) -> Setting:
    return Setting(name, {"model": "transformer", "lr": RATES[name], **hyperparameters})


SETTINGS = [
    *map(_word_setting, ("SGD", "Momentum", "RMSProp", "Adagrad", "Adam", "lazy Adam")),
    _transformer_setting("AdamW", beta2=0.95),
    _transformer_setting("AdamW, no warm-up", beta2=0.95, warm_up=0),
    _transformer_setting("AdamW, no correction", beta2=0.999, bias_correction="off", warm_up=0),
    _transformer_setting("AdamW, beta2 0.999", beta2=0.999, warm_up=0),
    _transformer_setting("SGD with momentum", member="momentum"),
]


def sweep() -> dict[str, dict[float, float]]:
    """The mean validation loss of each setting at each rate."""
    text = load_text()
    words, nexts = _pairs(text.validation)

    def score(setting: Setting, lr: float) -> float:
        hyperparameters = {name: value for name, value in setting.hyperparameters.items() if name not in ("model", "lr")}

        def one(seed: int) -> float:
            if setting.hyperparameters["model"] == "transformer":
                return _train_transformer(hyperparameters, lr, seed, TRANSFORMER_STEPS, text.validation)[0]
            return float(_losses(_train_words(hyperparameters["member"], lr, seed, STEPS)[0], words, nexts).mean())

        try:
            return statistics.fmean(map(one, SWEEP_SEEDS))
        except GradientError:  # it has diverged: the step was refused
            return math.inf

    with np.errstate(all="ignore"):
        return {setting.name: search(functools.partial(score, setting), range(-6, 1)) for setting in SETTINGS}


def _times(low: float, high: float) -> str:
    return f"at least {low}" if high == math.inf else f"{low} to {high - 1}"


STUDY = Study(
    name="nlp",
    title="Language: a word model and a small transformer on the text of Python's help",
    metrics={
        "loss": "of the word model on text that it has not seen, in nats a word",
        **{f"loss_{name}": f"where the word to be predicted occurs {_times(*each)} times in training" for name, each in BINS.items()},
        "absent_motion": "share of the embedding's motion in a step that is in rows without a word of the batch",
        "transformer_loss": "of the transformer on text that it has not seen, in nats a word",
        "largest_update": "root of the mean square of the largest of its first hundred updates, over lr",
    },
    settings=SETTINGS,
    claims=[
        Claim("of rare words Adam learns more than gradient descent", "Kunstner et al., 2024", "loss_rare", "Adam", "SGD", "below"),
        Claim("and more than momentum", "Kunstner et al., 2024", "loss_rare", "Adam", "Momentum", "below"),
        Claim("of frequent words both learn about as much: less than 0.1 nats between them", "Kunstner et al., 2024",
              "loss_frequent", "SGD", "Adam", "within", 0.1),
        Claim("most of what Adam does to an embedding happens to words that are not there", "pytorch#18404",
              "absent_motion", "Adam", None, "above", 0.5),
        Claim("lazy Adam, whose absent rows stand still, loses less than 0.1 nats by it", "Honnibal (clab/dynet#70)",
              "loss", "lazy Adam", "Adam", "below", 0.1),
        Claim("a transformer learns more with AdamW than with momentum", "Zhang et al., 2020",
              "transformer_loss", "AdamW", "SGD with momentum", "below"),
        Claim("without bias correction the first updates are several times as large: more than twice", "Zhang et al., 2021 (BERTAdam)",
              "largest_update", "AdamW, no correction", "AdamW, beta2 0.999", "above", 2.0, "ratio"),
        Claim("warm-up lowers the loss", "Vaswani et al., 2017", "transformer_loss", "AdamW", "AdamW, no warm-up", "below"),
        Claim("a shorter second moment lowers the loss", "nanoGPT, OLMo (beta2 0.95)",
              "transformer_loss", "AdamW, no warm-up", "AdamW, beta2 0.999", "below"),
    ],
    run=run,
    seeds=4,
    full_seeds=8,
    needs=("torch", "scipy.stats"),
    sweep=sweep,
)  # fmt: skip
