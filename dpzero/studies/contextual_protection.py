"""Contextual protection against differential privacy: how far can an attacker read made-up secrets out of a model?

PrivacyMind (Xiao et al. 2024, arXiv 2310.02469) fine-tunes a language model to answer without private details.
Its best variant is instruction tuning with positive and negative examples: for each question the model learns
a protected answer (positive) and the default answer with the secret (negative), and users are shown the
protected one alone. No epsilon holds for it: the secret is in the training text. So it is a baseline of leaks.

The experiment. N made-up people have a job, a city and a secret code. Each joins the training set of a run with
probability 1/2. LoRA adapters of a causal model are trained on the members' texts: on questions with default
answers (`plain`, with and without privacy), or on questions that ask for both answers (`contextual`). The
attacker knows all but the code, and has a prompt for each way to ask (see `PROMPTS`).

* Exposure (Carlini et al. 2019, arXiv 1802.08232): log2 R - log2 rank of the right code among all R codes by
  likelihood. A code that nobody trained on has about log2(e) = 1.44 bits in the mean.
* Extracted: the right code is the likeliest. Written: the greedy answer holds it.
* Membership: log-likelihood of the code over that at the base model (Yeom et al. 2018, with a reference).

What was followed. The abstract, the README of the public code (LoRA; a data set class of instructions with both
examples, in either order) and the protected answer first. Its templates, losses and learning rates were not
read: prompts here are our own, in a few words for a small model. Keys are published, texts are made up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..language.data import assets
from ..language.models import encoding, losses, model_catalogue, text_classifier
from ..language.models.encoding import Continuations, TokenizerInfo
from ..privacy import RunKey, Setting
from ..run.provenance import method_digest, provenance
from . import membership_attacks
from .membership_runs import Method, draw_members, kept, run_file, train, trained

FORMAT = 1  # raise it when the same settings and seed give another outcome
FALSE_POSITIVE_RATE = 0.1  # a few runs of a few people do not resolve less
DELTA = 1e-5
RATE = 0.5  # probability that a member is in a batch
TOKEN_BUDGET = 2048
WRITTEN_TOKENS = 40  # of a greedy answer
FIRST = ("Ada", "Boris", "Clara", "Derek", "Elsa", "Felix", "Greta", "Henry")
LAST = ("Vinter", "Marsh", "Holm", "Fabre")
JOBS = ("baker", "doctor", "pilot", "lawyer", "painter", "farmer", "nurse", "singer")
CITIES = ("Oslo", "Rome", "Cairo", "Lima", "Paris", "Delhi", "Boston", "Vienna")
BEFORE_CODE = ", access code "
BOTH = " Give a protected and a default answer."
PROMPTS = {  # name -> what the attacker asks for
    "plain": "the question",
    "protected": "both answers asked, in the protected one",
    "default": "both answers asked, in the default one",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fine_tuning": {"optimizer": "adamw", "learning_rate": 3e-3},
    "dp_sgd": {"optimizer": "adam", "learning_rate": 3e-3, "clip": 0.1},
    "dpzero": {"learning_rate": 1e-3, "smoothing": 1e-3, "clip": 3.0},
}


@dataclass(frozen=True)
class Person:
    """A canary: all but the code is public."""

    name: str
    known: str
    code: tuple[int, ...]

    def pieces(self, prompt: str) -> tuple[str, str, str]:
        """For a key of PROMPTS: the question, the answer up to what is known, and what is known."""
        question, known = f"Who is {self.name}?", f" {self.known}"
        if prompt == "plain":
            return question, "", known
        if prompt == "protected":
            return question + BOTH, " Protected:", known
        return question + BOTH, f" Protected:{known}{BEFORE_CODE}hidden. Default:", known


def people(count: int, digits: int, seed: int = 0) -> list[Person]:
    """The first so many people, each with a code of `digits` digits drawn from the published seed."""
    stream = RunKey.published(seed).stream("canaries")
    codes = (stream.uniforms(count * digits, 0) * 10).astype(int).reshape(count, digits)
    found = []
    for i, code in enumerate(codes):
        name = f"{FIRST[i % len(FIRST)]} {LAST[i // len(FIRST)]}"
        known = f"A {JOBS[(3 * i + i // 8) % len(JOBS)]} in {CITIES[(5 * i + i // 8) % len(CITIES)]}"
        found.append(Person(name, known, tuple(code.tolist())))
    return found


@dataclass(frozen=True)
class Canaries:
    """The people as a model reads them.

    Args:
        digit_tokens: of 0 to 9.
        training: kind of training text, plain or default (that is, with both answers) -> all people's.
    """

    people: list[Person]
    info: TokenizerInfo
    digit_tokens: list[int]
    training: dict[str, Continuations]

    @classmethod
    def encode(cls, persons: list[Person], info: TokenizerInfo) -> Canaries:
        digits = [info.encode(str(digit))[-1] for digit in range(10)]
        end = info.encode(".")
        training = {}
        for kind in ("plain", "default"):
            rows = []
            for person in persons:
                question, lead, known = person.pieces(kind)
                code = [digits[digit] for digit in person.code]
                answer = [*_tokens(info, lead, known, BEFORE_CODE), *code, *end]
                rows.append([((*info.first, *info.encode(question), *answer), len(answer), True)])
            training[kind] = Continuations.from_candidates(rows, [""] * len(rows))
        return cls(persons, info, digits, training)

    def prefix(self, i: int, prompt: str) -> list[int]:
        """All tokens before the code."""
        return [*self.info.first, *_tokens(self.info, *self.people[i].pieces(prompt), BEFORE_CODE)]


def _tokens(info: TokenizerInfo, *pieces: str) -> list[int]:
    """Of texts one after the other, each tokenized by itself."""
    return [token for piece in pieces for token in info.encode(piece)]


# -- attacks -------------------------------------------------------------------------------------------------


@torch.no_grad()
def code_log_likelihoods(
    model: Any, prefix: list[int], digit_tokens: list[int], digits: int, compute: str
) -> NDArray[np.float64]:
    """The log-likelihood of every code after the prefix, [10 ** digits], in the order of the numbers.

    Each prefix of codes is read once, after the cached keys and values of what is before it.
    """
    language_model, tokens = model.language_model, torch.tensor(digit_tokens)
    ids, cache, total = torch.tensor([prefix]), None, torch.zeros(1, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bfloat16"):
        for level in range(digits):
            read = language_model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = read.logits[:, -1].float()
            following = logits[:, tokens] - logits.logsumexp(-1, keepdim=True)
            total = (total[:, None] + following).flatten()
            if level < digits - 1:
                cache = read.past_key_values
                cache.batch_repeat_interleave(10)
                ids = tokens.repeat(len(ids))[:, None]
    return total.numpy()


def rank_of(likelihoods: NDArray, code: tuple[int, ...]) -> int:
    """The rank of a code, 1 for the likeliest; among ties the worst."""
    return int((likelihoods >= likelihoods[index_of(code)]).sum())


def index_of(code: tuple[int, ...]) -> int:
    return int("".join(map(str, code)))


@dataclass(frozen=True)
class Attack:
    """What is measured on a trained model, for each prompt of `prompts` and person."""

    model: Any
    canaries: Canaries
    prompts: tuple[str, ...]
    compute: str

    def measure(self) -> dict[str, NDArray]:
        """rank and log_likelihood of the right codes, and whether they are written: [prompts, N]."""
        persons = self.canaries.people
        rank = np.zeros((len(self.prompts), len(persons)), np.int64)
        likelihood, written = np.zeros(rank.shape), np.zeros(rank.shape, bool)
        for p, prompt in enumerate(self.prompts):
            for i, person in enumerate(persons):
                every = code_log_likelihoods(
                    self.model,
                    self.canaries.prefix(i, prompt),
                    self.canaries.digit_tokens,
                    len(person.code),
                    self.compute,
                )
                rank[p, i], likelihood[p, i] = rank_of(every, person.code), every[index_of(person.code)]
            written[p] = self._written(prompt)
        return {"rank": rank, "log_likelihood": likelihood, "written": written}

    def _written(self, prompt: str) -> NDArray[np.bool_]:
        """[N]: whether the greedy answer holds the code, in the half of it that the prompt names.

        A user of a protected model sees the text before the default answer.
        """
        info, persons = self.canaries.info, self.canaries.people
        questions = [info.encode(person.pieces(prompt)[0]) for person in persons]
        prompts = [np.array([*info.first, *question]) for question in questions]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.compute == "bfloat16"):
            answers = losses.generate_answers(self.model, prompts, WRITTEN_TOKENS, info)
        if prompt == "protected":
            answers = [answer.partition("Default:")[0] for answer in answers]
        codes = ["".join(map(str, person.code)) for person in persons]
        return np.array([code in answer for code, answer in zip(codes, answers, strict=True)])


# -- runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A way to train, and the prompts of its attacker."""

    method: Method
    training: str
    prompts: tuple[str, ...]


def trials(setting: Setting, epsilons: tuple[float, ...]) -> list[Trial]:
    """The base model, plain and contextual fine-tuning, and plain private fine-tuning at each epsilon."""
    adamw = SETTINGS["fine_tuning"]
    contextual = "Contextual protection (AdamW)"
    found = [
        Trial(Method("base", "Base model", 0.0, tune="lora"), "plain", tuple(PROMPTS)),
        Trial(Method("plain", "AdamW", None, "fine_tuning", adamw, tune="lora"), "plain", ("plain",)),
        Trial(
            Method("contextual", contextual, None, "fine_tuning", adamw, tune="lora"),
            "default",
            tuple(PROMPTS),
        ),
    ]
    for use, title in (("dp_sgd", "DP-Adam"), ("dpzero", "DPZero")):
        for e in epsilons:
            scale = setting.cached_noise_scale(e, assets.cache_folder() / "calibrations")
            method = Method(f"{use}_{e:g}", f"{title}, ε = {e:g}", e, use, SETTINGS[use], scale, "lora")
            found.append(Trial(method, "plain", ("plain",)))
    return found


class Runs:
    """Trains and attacks one model after the other, and keeps what each run leaves."""

    def __init__(
        self, model_name: str, canaries: Canaries, setting: Setting, compute: str, folder: Path | None
    ) -> None:
        self.canaries, self.setting, self.compute, self.folder = canaries, setting, compute, folder
        self.model = text_classifier.TextScorer(model_catalogue.load_pretrained(model_name))
        text_classifier.select_trainable(self.model, "lora")
        self.model.eval()
        self.start: list[Tensor] = [p.detach().clone() for p in trained(self.model)]
        self.loss = losses.ContinuationLoss(TOKEN_BUDGET, compute)
        self.identity = {
            **{"format": FORMAT, "model": model_name, "weights": model_catalogue.digest(model_name)},
            **{"people": [asdict(person) for person in canaries.people], "both": BOTH},
            **{"setting": asdict(setting), "compute": compute},
        }

    def outcome(self, trial: Trial, seed: int) -> dict[str, NDArray]:
        """`Attack.measure`, and `known_loss` [N], nats a token, of the public half of the training text."""
        identity = self.identity | {"training": trial.training, "prompts": trial.prompts}
        return kept(run_file(self.folder, identity, trial.method, seed), lambda: self._run(trial, seed))

    def _run(self, trial: Trial, seed: int) -> dict[str, NDArray]:
        with torch.no_grad():
            for parameter, value in zip(trained(self.model), self.start, strict=True):
                parameter.copy_(value)
        if trial.method.use:
            texts = self.canaries.training[trial.training]
            train(self.model, self.loss, texts, self.setting, trial.method, seed)
        measured = Attack(self.model, self.canaries, trial.prompts, self.compute).measure()
        return measured | {"known_loss": self._known_loss(trial.prompts)}

    @torch.no_grad()
    def _known_loss(self, prompts: tuple[str, ...]) -> NDArray[np.float64]:
        """[prompts, N]: the loss of job and city, after what is before them."""
        info, found = self.canaries.info, []
        for prompt in prompts:
            rows = []
            for person in self.canaries.people:
                question, lead, known = map(info.encode, person.pieces(prompt))
                rows.append([((*info.first, *question, *lead, *known), len(known), True)])
            texts = Continuations.from_candidates(rows, [""] * len(rows))
            found.append(-self.loss.scores(self.model, texts.candidates).double().numpy())
        return np.array(found)


# -- the experiment ------------------------------------------------------------------------------------------


def contextual_protection(
    model: str = "smollm2-135m",
    *,
    count: int = 16,
    digits: int = 2,
    runs: int = 4,
    steps: int = 30,
    epsilons: tuple[float, ...] = (8.0,),
    compute: str = "bfloat16",
    folder: Path | None = None,
    log: Callable[[str], object] = print,
) -> dict:
    """Attack a causal model after plain, contextual and private fine-tuning.

    Args:
        count: of people, at most len(FIRST) * len(LAST).
        digits: of a code.
        runs: of each method; all methods share members, batches and adapters' start.
        steps: of each run, with batches of half of the members.
        epsilons: claims of the private methods at DELTA; the unit is one person's text.
        compute: type of matrix products.
        folder: of the runs' files, from which a study goes on; None keeps none.

    Returns:
        `rows`, one for each method and prompt, the settings of the experiment, provenance.
    """
    setting = Setting("gaussian", "poisson", "add_remove", count, round(RATE * count), steps, DELTA)
    canaries = Canaries.encode(people(count, digits), encoding.tokenizer_info(model))
    job = Runs(model, canaries, setting, compute, folder)
    ways, outcomes = trials(setting, tuple(epsilons)), dict[str, list[dict[str, NDArray]]]()
    for seed in range(runs):
        for trial in ways:
            name = trial.method.name
            same = trial.method.use is None and outcomes.get(name)  # the base model is the same in every run
            outcomes.setdefault(name, []).append(same[0] if same else job.outcome(trial, seed))
            log(f"contextual protection: {name}, run {seed + 1} of {runs}")
    members = np.array([draw_members(count, seed) for seed in range(runs)])
    everything = [each for its_runs in outcomes.values() for each in its_runs]
    return {
        "rows": list(_rows(ways, outcomes, members, setting, digits)),
        **{"model": model, "tune": "lora", "people": count, "digits": digits, "runs": runs, "steps": steps},
        **{"rate": setting.rate, "delta": DELTA, "false_positive_rate": FALSE_POSITIVE_RATE},
        **{"compute": compute, "confidence": membership_attacks.CONFIDENCE, "accountant": setting.accountant},
        "settings": {trial.method.name: trial.method.settings for trial in ways},
        **{"noise_key": "published", "valid_release": False, "data": "made up"},
        "seconds": round(sum({id(each): float(each["seconds"]) for each in everything}.values()), 1),
        "provenance": {
            **provenance("dpzero", "cpu"),
            "method_code": {use: method_digest(use) for use in sorted(SETTINGS)},
            "model": {"name": model, "sha256": model_catalogue.digest(model)},
            "code": " and ".join(sorted({str(each["code"]) for each in everything})),
        },
    }


def _rows(
    ways: list[Trial],
    outcomes: dict[str, list[dict[str, NDArray]]],
    members: NDArray[np.bool_],
    setting: Setting,
    digits: int,
) -> Iterator[dict]:
    """One row for each method and prompt; only a method with a claim has an epsilon."""
    stacked = {
        name: {
            key: np.array([each[key] for each in its_runs]) for key in ("rank", "log_likelihood", "written")
        }
        | {"known_loss": np.array([each["known_loss"] for each in its_runs])}
        for name, its_runs in outcomes.items()
    }
    for trial in ways:
        values, claim = stacked[trial.method.name], trial.method.claim(setting)
        for p, prompt in enumerate(trial.prompts):
            base = list(PROMPTS).index(prompt)
            exposure = digits * math.log2(10) - np.log2(values["rank"][:, p])
            gain = values["log_likelihood"][:, p] - stacked["base"]["log_likelihood"][:, base]
            known = stacked["base"]["known_loss"][:, base] - values["known_loss"][:, p]
            metrics = membership_attacks.measure(gain, members, FALSE_POSITIVE_RATE)
            yield {
                **{"method": trial.method.name, "title": trial.method.title, "prompt": prompt},
                **{"asked": PROMPTS[prompt], "training": trial.training},
                **{"private": trial.method.noise_scale is not None, "epsilon": trial.method.epsilon},
                "noise_scale": trial.method.noise_scale,
                **_means("exposure", exposure, members),
                **_means("exposure_of_others", exposure, ~members),
                **_means("extracted", values["rank"][:, p] == 1, members),
                **_means("written", values["written"][:, p], members),
                **_means("known_gain", known, members),
                **metrics,
                **(claim.limits(metrics, FALSE_POSITIVE_RATE) if claim else {}),
            }


def _means(name: str, values: NDArray, among: NDArray[np.bool_]) -> dict[str, float]:
    """The mean over these people of each run, averaged over runs, with its interval."""
    of_runs = np.array([row[mask].mean() for row, mask in zip(values, among, strict=True)])
    return dict(zip((name, f"{name}_low", f"{name}_high"), membership_attacks.interval(of_runs), strict=True))
