"""What a run is built from: examples, loss, model, budget, method and batches. Its state does not change."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..files import run_id
from ..language.data import assets, tasks
from ..language.models import caches, encoding, frozen_layers, losses, model_catalogue, text_classifier
from ..plan.registry import Card, card
from ..plan.settings import RUN_SETTINGS, TUNE_SETTINGS, check_files, draw_of, group_size
from ..privacy import Budget, RunKey, Setting
from ..privacy.imitation_budget import PublicCodeBudget
from ..privacy.public_implementations import IMPLEMENTATIONS, PublicRun
from ..privacy.sampling import SAMPLERS, Users
from ..zeroth_order.distributed import Ranks
from ..zeroth_order.protocols import Method
from . import gpu_lock
from .provenance import provenance
from .record_file import is_release

ALONE = Ranks()
PUBLIC = "public"  # beside the splits: the public examples of a method that reads some
PUBLIC_SEED = 0  # of the draw of public rows
TIMED_STEPS = 5  # steps that are timed together with two plain forward passes on the same batch


class Setup:
    """The parts of one run, each built by a method.

    Attributes:
        name: the run id.
        release: whether the run is a private release, which writes nothing that is not on the lists of
            `record_file`.
        examples: split -> tokenized examples. `train` are the private ones: what is public is taken out.
        loss: (model, batch of B examples) -> losses [B], float32.
        ranks: the processes that share the run.
        origin: code and machine, as they are when the run starts (see `provenance`).
    """

    def __init__(
        self, cell: dict, log: Callable[[str], object], device: str | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.cell, self.settings, self.log = cell, cell["settings"], log
        self.name, self.release = run_id(cell), is_release(cell)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.card: Card = card(cell["use"])
        self.origin = provenance(cell["use"], self.device)
        self.ranks = ranks
        self._check_ranks()
        self.key = self._shared_key()
        check_files(cell)
        self.task = tasks.load(cell["task"], draw_of(cell))
        self.examples: dict[str, Any] = encoding.encode(self.task, cell["model"], self.settings["max_length"])
        if wanted := self.settings.get("test_examples"):
            test = self.examples["test"]
            self.examples["test"] = test[np.arange(min(wanted, len(test)))]
        self.examples |= {split: self._weighted(self.examples[split]) for split in ("dev", "test")}
        if self.card.public_data:
            self._whole_train = self.examples["train"]
            self.examples |= self._public_and_private(self._whole_train)
        if self.card.writes_demonstrations:
            written_from = encoding.encode_by_label(self.task, cell["model"], self.settings["max_length"])
            self.examples["train"], self.prompts = written_from
        self.redacted_rows = 0.0  # share of the training rows that a policy changes
        if policy := self._of_method("redaction"):
            self.examples["redacted"] = self._redacted(policy)
        self._check_rows()
        self.users = self._users()
        sizes = self.settings["token_budget"], self.settings["compute"]
        scores_text = isinstance(self.examples["train"], encoding.Continuations)
        self.loss: Any = losses.make_loss(self.task, cell["model"], *sizes, scores_text)
        self.loss.share = ranks.rank, ranks.size
        last = max(0, self.settings["steps"] - 1)
        self.timed_steps = set(np.linspace(0, last, TIMED_STEPS).astype(int).tolist())

    def say(self, line: str) -> None:
        self.log(f"{self.name}: {line}")

    @property
    def iterate(self) -> str:
        """The rule by which the reported checkpoint is selected."""
        return self.settings.get("iterate", "last")

    def _of_method(self, name: str) -> Any:
        """A setting of the method, given or by default; None for a method that does not have it."""
        return self.settings.get(name, self.card.defaults.get(name))

    # -- checks

    def _check_ranks(self) -> None:
        if self.ranks.size > 1 and self.card.order != 0:
            raise UsageError(
                f"method {self.cell['method']} exchanges more than scalars: {self.ranks.size} ranks are for "
                "zeroth-order methods, use one"
            )
        if self.ranks.size > 1 and self.settings.get("unit") == "user":
            raise UsageError("the unit is the user, whose examples several ranks would have: use one rank")
        if self.ranks.size > 1 and self.settings.get("as_published"):
            raise UsageError(
                "as_published divides by the size of a batch, of which each rank has a share: use one rank"
            )

    def _shared_key(self) -> RunKey:
        """Rank 0's key, which all ranks need to draw the same batches. It is as safe as their connection."""
        key = RunKey.for_run(self.settings.get("noise_key", "published"), self.cell["seed"])
        return RunKey(key.noise_key, self.ranks.shared(key.key)) if self.ranks.size > 1 else key

    def _check_rows(self) -> None:
        split = self.settings["split"]
        if self.iterate != "last" and not len(self.examples["dev"]):
            raise UsageError(
                f"{self.name}: iterate {self.iterate} looks at dev, of which there are no rows: draw fewer "
                "training rows"
            )
        if not len(self.examples[split]):
            raise UsageError(f"{self.name}: there are no rows of split {split}: evaluate another")

    def _public_and_private(self, train: Any) -> dict[str, Any]:
        """Public examples, the same for every seed of a cell without a draw, and those of `train` that stay private.

        If seeds drew them, one run would read without noise what another protects, and their epsilons could not be
        composed. A private row with the text of a public one is left out.

        Args:
            train: the training examples, or their features if the public ones are among them.
        """
        count, other = self.settings["public_examples"], self.settings["public_task"]
        source, theirs = train, self.task
        if other:
            theirs = tasks.load(other)
            source = encoding.encode(theirs, self.cell["model"], self.settings["max_length"])["train"]
        if count >= len(source) or type(source) is not type(train):
            raise UsageError(
                f"{self.name}: {count} public examples of the {len(source)} training rows of task "
                f"{other or self.cell['task']} leave none, or are not read as those of {self.cell['task']}: give a smaller "
                "public_examples, or another public_task"
            )
        public = np.sort(np.random.default_rng(PUBLIC_SEED).permutation(len(source))[:count])
        texts = [_words(row.text) for row in theirs.splits["train"]]
        read = {texts[i] for i in public}
        if other:
            self._check_apart(read)
            return {PUBLIC: source[public], "train": train}
        apart = [text not in read for text in texts]
        return {PUBLIC: source[public], "train": train[np.flatnonzero(apart)]}

    def _check_apart(self, read: set[str]) -> None:
        """No row of the task may stand among the public texts of another: it would be private, or tested, and read."""
        for split, rows in self.task.splits.items():
            if shared := sum(_words(row.text) in read for row in rows):
                raise UsageError(
                    f"{self.name}: {shared} rows of split {split} are public examples of task "
                    f"{self.settings['public_task']}, too: give another public_task"
                )

    def _redacted(self, policy: str) -> Any:
        """The training examples after a policy, of which at least one must differ: else the second pass protects nothing."""
        redacted = replace(self.task, redaction=policy)
        before, after = (Counter(row.text for row in task.splits["train"]) for task in (self.task, redacted))
        self.redacted_rows = (before - after).total() / before.total()
        if not self.redacted_rows:
            raise UsageError(
                f"{self.name}: redaction {policy} finds no sensitive word in the training rows of task {self.cell['task']}, so "
                "that selective epsilon would be about nothing: take another method or task"
            )
        return encoding.encode(redacted, self.cell["model"], self.settings["max_length"])["train"]

    # -- users

    def _users(self) -> Users | None:
        """The users of the training rows, if the unit is the user."""
        if self.settings.get("unit") != "user":
            return None
        return Users(self.task.users(self.settings.get("synthetic_users", 0)))

    @property
    def group_size(self) -> int:
        """Examples of a user that are drawn one by one, under group privacy; 0 elsewhere."""
        return group_size(self.settings) if self.settings.get("user_level") == "group_privacy" else 0

    @property
    def unit(self) -> str:
        """Of the budget."""
        return "example" if self.users is None else "group" if self.group_size else "user"

    @property
    def drawn_rows(self) -> np.ndarray:
        """The training rows that batches are drawn from."""
        if self.users is None or not self.group_size:
            return np.arange(len(self.examples["train"]))
        return self.users.kept(self.group_size)

    @property
    def examples_in_a_batch(self) -> float:
        """How many are expected."""
        size = min(self.settings["batch_size"], len(self.examples["train"]))
        at_most = self.settings.get("examples_per_user", 0)
        if self.users is None or self.group_size:
            return size
        return size * self.users.mean_examples(at_most)

    def _take(self, train: Any, budget: Budget) -> Callable[[np.ndarray], Any]:
        """A function that makes a batch of drawn units: examples or, if users are drawn, (examples, users)."""
        users, rows = self.users, self.drawn_rows
        if users is None or self.group_size:
            return lambda drawn: train[rows[drawn]]
        at_most, choice = self.settings.get("examples_per_user", 0), self.key.stream("examples of users")

        def take(drawn: np.ndarray) -> tuple[Any, np.ndarray]:
            chosen, whose = users.examples(drawn, at_most, choice, budget.queue.position)
            return train[chosen], whose

        return take

    # -- parts

    def model(self) -> torch.nn.Module:
        """The base model, loaded anew."""
        return base_model(self.cell, self.task, self.device)

    def model_and_examples(self) -> tuple[Any, Mapping[str, Any]]:
        """The model and the examples as steps read them: head and cached features if the head alone is trained."""
        whole = self.card.writes_demonstrations  # it reads tokens
        if not whole and self.settings["tune"] == "top":
            return self._without_frozen_layers()
        if whole or not caches.trains_on_features(self.examples["train"], self.settings):
            return self.model(), self.examples
        examples, split = self._examples_to_read(), self.settings["split"]
        name, seed, load = self.cell["model"], self.cell["seed"], cache(self._load_for_features)
        among_train = self.card.public_data and not self.settings["public_task"]
        if among_train:  # so that the cache has the features of all rows once, whichever are public
            examples["train"] = self._whole_train
        further = examples.keys() & ({"redacted"} if among_train else {"redacted", PUBLIC})
        for part in dict.fromkeys(("train", "dev", split, *further)):
            examples[part] = caches.read_features(name, load, examples[part], seed, self.device)
        if among_train:
            examples |= self._public_and_private(examples["train"])
        head = caches.read_head(name, load, self.task, seed).to(self.device.split(",")[0])
        return text_classifier.HeadAlone(head), examples

    def _examples_to_read(self) -> dict[str, Any]:
        """The examples, of dev those alone that this run looks at."""
        examples = dict(self.examples)
        if self.settings["split"] != "dev":
            looks = self.iterate == "accounted" or not self.release
            examples["dev"] = self.curve_examples(examples) if looks else examples["dev"][np.arange(0)]
        return examples

    def _without_frozen_layers(self) -> tuple[Any, Mapping[str, Any]]:
        """Last layer and head, and examples that name the hidden states which the layer reads, from the cache."""
        model = self.model()
        if self.settings.get("dropout") or not frozen_layers.can_cache(model, self.examples["train"]):
            return model, self.examples
        name, seed, precision = self.cell["model"], self.cell["seed"], self.loss.precision
        kind = f" below the last layer, {self.settings['compute']}"

        def states(texts: Any) -> np.ndarray:
            make = partial(frozen_layers.hidden_states, model, texts, precision)
            return caches.read_array(name, make, texts, seed, self.device, kind)

        read = {"train", "dev", self.settings["split"], "redacted", PUBLIC}
        splits = {part: texts for part, texts in self._examples_to_read().items() if part in read}
        return frozen_layers.without_frozen_layers(model, splits, states)

    def _load_for_features(self) -> torch.nn.Module:
        self.say("loading the whole model: the features of some texts are not in the cache")
        return self.model()

    def curve_examples(self, examples: Mapping[str, Any]) -> Sized:
        """The dev examples of a point of the learning curve."""
        dev = examples["dev"]
        return dev[np.arange(min(self.settings["curve_examples"], len(dev)))]

    def majority(self, split: str) -> dict[str, float]:
        """The accuracy of always answering the most frequent label of a split, for the metrics; empty without labels."""
        if not self.task.labels:
            return {}
        examples = self.examples[split]
        labels = examples.gold() if isinstance(examples, encoding.Continuations) else examples.labels
        return {"majority": int(np.bincount(labels).max()) / len(labels)}

    def budget(self, ledger: Path | None) -> Budget | None:
        """The privacy budget; None for a method without noise."""
        if not self.card.private:
            return None
        epsilon = float(self.cell["epsilon"])
        size = len(self.users) if self.users and self.unit == "user" else len(self.drawn_rows)
        sizes = {name: self.settings[name] for name in ("batch_size", "steps", "delta")}
        kinds = {name: self.settings.get(name) for name in ("mechanism", "sampling", "adjacency")}
        try:
            if self.settings.get("as_published"):
                # the public accountant is given this size, though a class may have fewer rows
                assumed = self.settings.get("shots", 0) * len(self.task.labels) or None
                practice = IMPLEMENTATIONS[self.card.file]
                claimed = Setting("gaussian", "poisson", "add_remove", dataset_size=size, **sizes)
                return PublicCodeBudget(PublicRun(practice, epsilon, claimed, assumed), self.key, ledger)
            setting = Setting(dataset_size=size, group_size=max(1, self.group_size), **sizes, **kinds)
            folder = assets.cache_folder() / "calibrations"
            scale = setting.cached_noise_scale(epsilon, folder)
            arithmetic = self.settings["noise_arithmetic"]
            how = {"noise_arithmetic": arithmetic, "unit": self.unit, "epsilon_target": epsilon}
            how |= {"first_share": self._of_method("map_share") or 0.0}
            budget = Budget(setting, scale, self.key, ledger, **how)
            budget.cached_costs = None if self.release else folder  # what a release says is computed for it
            return budget
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error

    def method(self, model: torch.nn.Module, budget: Budget | None, public: Any = None) -> Method:
        """The method on a model, with the public examples that it reads, if it reads some."""
        leave_compiler_out()
        own = {k: v for k, v in self.settings.items() if k in self.card.settings and k not in RUN_SETTINGS}
        budget_or_size = budget or self.settings["batch_size"]
        try:
            method = self.card.load()(model, self.loss, budget_or_size, seed=self.cell["seed"], **own)
        except ValueError as error:
            if self.unit == "user":  # which not every method has
                raise UsageError(f"{self.name}: {error}") from error
            raise
        if self.card.public_data:
            method.public = public
        if self.card.writes_demonstrations:
            line_ends = encoding.tokenizer_info(self.cell["model"]).encode("\n")[:1]
            method.prompts, method.stops = self.prompts, frozenset(line_ends)
        return method

    def after_demonstrations(self, split: str, written: list[tuple[int, list[int]]]) -> tuple[Any, str]:
        """The examples of a split after the demonstrations that the method wrote, and these as text."""
        name, length = self.cell["model"], self.settings["max_length"]
        shown = encoding.demonstrations_text(self.task, name, written)
        whole = encoding.encode_after(shown, self.task, name, length, split)
        return whole[np.arange(len(self.examples[split]))], shown

    def batches(self, train: Any, budget: Budget | None, start: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """(step, what `step` takes) from a step on: for the same seed every method meets the same batches.

        A batch and, if users are drawn, the user of each of its examples.

        A private run ends with its budget. A release that a killed process made, and could not use, is one
        step less.
        """
        if budget is not None:
            drawn = budget.batches(self._take(train, budget))
        elif start == self.settings["steps"]:
            return
        else:
            kind, size = SAMPLERS[self.settings["sampling"]], len(train)
            sampler = kind(size, min(size, self.settings["batch_size"]), self.key.stream("sampling"))
            drawn = map(train.__getitem__, map(sampler.batch, range(start, self.settings["steps"])))
            drawn = map(self._weighted, drawn)
        for step, made in enumerate(drawn, start):
            yield step, made if self.unit == "user" else (made,)

    def _weighted(self, examples: Any) -> Any:
        """Examples whose mean loss is the one that the setting `batch_loss` names."""
        by_tokens = self.settings.get("batch_loss") == "mean_of_tokens"
        return examples.weighted_by_tokens() if by_tokens else examples

    def describe_provenance(self, steps: int) -> dict:
        """The part `provenance` of the record: code, machine, base model and data."""
        task, model = self.cell["task"], self.cell["model"]
        origin = dict(self.origin)
        if gpu_lock.shared():  # so that its times stand in a row of their own
            origin["device"] += f", shared by up to {gpu_lock.share()} runs"
        if self.ranks.size > 1:
            origin["ranks"] = describe_ranks(self.ranks, steps)
        weights, title = model_catalogue.digest(model), model_catalogue.stanza(model)["title"]
        data = {"name": task, "sha256": tasks.digest(task), **self.task.about()}
        if self.users is not None:
            made_up = self.settings.get("synthetic_users")
            data["users"] = (
                "made up, by a hash of the text" if made_up else f"column {self.task.stanza['user']}"
            )
        if not self.release and (departure := tasks.files_differ(task)):
            data["departure"] = departure
        if not self.release and self.redacted_rows:
            data["redacted_rows"] = self.redacted_rows
        if not self.release and (other := self.settings.get("public_task")):
            data["public_sha256"] = tasks.digest(other)
        model_part = {"name": model, "sha256": weights, "title": title}
        return origin | {"threads": torch.get_num_threads(), "model": model_part, "data": data}


def _words(text: str) -> str:
    """The words of a text, without case and punctuation: what makes two rows the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def base_model(cell: dict, task: tasks.Task, device: str) -> Any:
    """The model that a cell starts from, a Classifier or TextScorer with the cell's trainable parameters."""
    keys = ("tie_embeddings", "lora_head", *TUNE_SETTINGS)
    how = {key: cell["settings"][key] for key in keys if key in cell["settings"]}
    return text_classifier.load(cell["model"], task, cell["settings"]["tune"], cell["seed"], device, **how)


def leave_compiler_out() -> None:
    """Let `torch.optim` do without torch's compiler, whose import takes a second: nothing is compiled here.

    At the first call of these methods torch imports it, only to exclude them from what it compiles.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(torch.optim.Optimizer, name)
        if own := getattr(method, "__wrapped__", None):
            vars(own).setdefault("__dynamo_disable", own)


def describe_ranks(ranks: Ranks, steps: int) -> dict:
    """Bytes between rank 0 and each other rank, checks of the weights included."""
    messages = max(1, steps) * (ranks.size - 1)
    sent, received = ranks.sent_bytes / messages, ranks.received_bytes / messages
    counts = {"count": ranks.size, "backend": ranks.backend}
    return counts | {"bytes_a_step_from_each": received, "bytes_a_step_to_each": sent}
