"""Reinforcement learning: a target that moves at a stroke, what Adam's stale moments make of it, and what is done about it.

- **Task**: CartPole (gymnasium), solved by a deep Q-network (Mnih et al., 2015): 4-64-64-2, replay, batches of 128, discount 0.99; the target network
  is set to the online one every 500 steps of the environment, which changes the loss at a stroke.
- **Settings**: Adam with the eps of 1e-8 that is common elsewhere and with 3.125e-4 (Dopamine's), and two remedies at each change of
  the target: all states begun anew (Asadi et al., 2023), or the count of steps alone (Adam-Rel, Ellis et al., 2024), by `reset`.
- **Looked at**, by the number of steps since the last change: RMS_t, the root of the mean of g**2 / v_hat (1 where gradients are as large as
  they used to be), and the size of the step, the root of the mean square of the update over lr; and the returns of the last 20 episodes.
"""

from __future__ import annotations

import collections
import math
import operator
from typing import Any

import numpy as np

from .. import rules
from ..language.arrays import NUMBERS, evaluate
from . import module
from .frame import Cell, Claim, Setting, Study

__all__ = ["STUDY"]

STEPS, FULL_STEPS = 6000, 12_000
SYNC = 500  # steps of the environment between two changes of the target
WARM_UP = 500  # steps before the first update
BATCH = 128
LR = 1e-3
RMS, SIZE = "RMS_t", "size of the step, over lr"
PLACES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 400, 499)


def run(setting: Setting, seed: int, full: bool) -> Cell:
    """One agent."""
    torch, gymnasium = module("torch", "studies"), module("gymnasium", "studies")
    from ..torch import Adam

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    hyperparameters = dict(setting.hyperparameters)
    at_change = hyperparameters.pop("at_change", None)
    environment = gymnasium.make("CartPole-v1")
    state, _ = environment.reset(seed=seed)

    def network() -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
        )  # fmt: skip

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer: Any = Adam(online.named_parameters(), lr=LR, **hyperparameters)
    count = sum(p.numel() for p in online.parameters())
    replay: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=10_000)
    since, episode, returns = 0, 0.0, []
    profiles: dict[str, dict[int, list[float]]] = {RMS: {}, SIZE: {}}
    total = FULL_STEPS if full else STEPS
    for t in range(1, total + 1):
        if random.random() < max(0.05, 1 - t / 3000):
            action = int(random.integers(2))
        else:
            with torch.no_grad():
                action = int(online(torch.from_numpy(state)).argmax())
        following, reward, terminated, truncated, _ = environment.step(action)
        replay.append((state, action, float(reward), following, float(terminated)))
        state, episode = following, episode + float(reward)
        if terminated or truncated:
            returns.append(episode)
            episode = 0.0
            state, _ = environment.reset(seed=seed + t)
        if t <= WARM_UP:
            continue
        if t % SYNC == 0:
            target.load_state_dict(online.state_dict())
            since = 0
            if at_change is not None:
                optimizer.reset(**at_change)
        chosen = [replay[i] for i in random.integers(len(replay), size=BATCH)]
        states, actions, rewards, nexts, ends = (torch.from_numpy(np.array(column)) for column in zip(*chosen, strict=True))
        with torch.no_grad():
            goals = (rewards + 0.99 * (1 - ends) * target(nexts).amax(1)).float()
        values = online(states).gather(1, actions[:, None]).squeeze(1)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(values, goals).backward()
        since += 1
        look = since in PLACES and t > 2 * SYNC  # after the first changes all is new
        before = [_second_moment(optimizer.state[p], p) for p in online.parameters()] if look else []
        optimizer.step(measure=look)
        if look:
            squares = sum(seen["update_sum_squares"] for seen in optimizer.last_step.measures.values())
            profiles[SIZE].setdefault(since, []).append(math.sqrt(squares / count) / LR)
            profiles[RMS].setdefault(since, []).append(_rms(optimizer, before) / math.sqrt(count))
    environment.close()
    curves = {
        name: ([float(place) for place in sorted(seen)], [float(np.mean(seen[place])) for place in sorted(seen)]) for name, seen in profiles.items()
    }
    metrics = {"return": float(np.mean(returns[-20:]))}
    for name, key in ((RMS, "rms_comb"), (SIZE, "step_comb")):
        by_place = dict(zip(*curves[name], strict=True))
        metrics[key] = float(np.mean([by_place[place] for place in (2, 3, 4, 5, 7)]) / np.mean([by_place[place] for place in (200, 300, 400)]))
    return Cell(setting.name, seed, metrics, curves)


V_HAT = rules.adam.trace().named["v_hat"]
ON_ARRAYS = {**NUMBERS, "power": operator.pow}


def _second_moment(state: Any, p: Any) -> Any:
    """As it is now, in float64; 0 where it was begun anew."""
    return state["exp_avg_sq"].double().numpy().copy() if "exp_avg_sq" in state else np.zeros(tuple(p.shape))


def _rms(optimizer: Any, before: list[Any]) -> float:
    """The root of the sum of g**2 / v_hat, v_hat by the rule's own graph from the second moments before the step."""
    total = 0.0
    for group in optimizer.param_groups:
        for p, v in zip(group["params"], before, strict=True):
            g = p.grad.double().numpy()
            scalars = {("scalar", "beta2"): group["betas"][1], ("scalar", "t"): float(optimizer.state[p]["step"])}
            (v_hat,) = evaluate([V_HAT], {("tensor", "g"): g, ("state", "v"): v, **scalars}, ON_ARRAYS)
            total += float((g**2 / np.maximum(v_hat, 1e-30)).sum())
    return math.sqrt(total)


STUDY = Study(
    name="rl",
    title="Reinforcement learning: a deep Q-network on CartPole, whose target changes every 500 steps",
    metrics={
        "rms_comb": "RMS_t 2 to 7 steps after a change of the target, over that 200 to 400 steps after it",
        "step_comb": "the same of the size of the step",
        "return": "mean of the last 20 episodes",
    },
    settings=[
        Setting("Adam", {"eps": 1e-8}),
        Setting("eps 3.125e-4", {"eps": 3.125e-4}),
        Setting("reset all", {"eps": 1e-8, "at_change": {}}),
        Setting("reset t", {"eps": 1e-8, "at_change": {"moments": False}}),
    ],
    claims=[
        Claim("after a change of the target gradients are larger than Adam remembers: RMS_t more than 1.5 times as large", "Asadi et al., 2023",
              "rms_comb", "Adam", None, "above", 1.5, "ratio"),
        Claim("and its steps are several times as large: more than 3 times, 2 to 7 steps after the change", "Ellis et al., 2024",
              "step_comb", "Adam", None, "above", 3.0, "ratio"),
        Claim("counting the steps anew makes them smaller", "Ellis et al., 2024 (Adam-Rel)", "step_comb", "reset t", "Adam", "below", 1.0, "ratio"),
        Claim("beginning all states anew returns more", "Asadi et al., 2023, on Atari", "return", "reset all", "Adam", "above"),
        Claim("counting the steps anew returns more", "Ellis et al., 2024, on Atari and Craftax", "return", "reset t", "Adam", "above"),
        Claim("a larger eps returns more", "Dopamine's settings", "return", "eps 3.125e-4", "Adam", "above"),
    ],
    run=run,
    seeds=4,
    full_seeds=8,
    needs=("torch", "gymnasium", "scipy.stats"),
    across="steps since the target changed",
    notes=("Where a claim about returns is within noise, these runs do not tell the returns apart, and nothing follows for longer ones.",),
)  # fmt: skip
