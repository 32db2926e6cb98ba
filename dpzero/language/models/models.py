"""A language model as a classifier: a backbone, one feature per text, and a head with one row per label.

The head starts where no private example is needed: an encoder's rows are the embeddings of the label words, a causal or masked
model's are those of its own output layer for the answer tokens. The model is therefore a zero-shot classifier before any training.
Trained in full, a model whose output layer is its table of embeddings keeps them one (`heads`); otherwise the head is its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..data import prompts
from ..data.tasks import Task
from . import architectures, checkpoint_files, device_map, weights
from .heads import WordLayer, head_of, own_head
from .tokenizers import marks, tokenizer
from .weights import catalogue, digest

__all__ = ["Classifier", "Continuer", "catalogue", "digest", "load", "tokenizer"]


class Classifier(nn.Module):
    """forward(input_ids [B, L] or features [B, H], attention_mask [B, L]) -> logits [B, labels], float32."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        kind: str,
        feature_scale: float = 1.0,
        transform: nn.Module | None = None,
        mask: int | None = None,
    ) -> None:
        """`transform` is what a masked model has before its output layer, `mask` its mask token."""
        super().__init__()
        self.backbone, self.kind, self.feature_scale = backbone, kind, feature_scale
        if transform is not None:
            self.transform = transform
        self.mask = mask
        self.head = head

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        extra = {}
        if self.backbone.config.model_type == "bert":
            # one row of positions for each text: broadcast rows would give Opacus one gradient for the whole batch
            extra["position_ids"] = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(
                input_ids
            )
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        if self.kind != "encoder":
            # the last token, as padding is on the right, or the first mask: a text might hold another
            masked = self.kind == "masked"
            read = (input_ids == self.mask).int().argmax(1) if masked else attention_mask.sum(1) - 1
            read = hidden[torch.arange(len(hidden), device=hidden.device), read.to(hidden.device)]
            return self.transform(read) if masked else read
        mask = attention_mask[..., None].to(hidden)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1) * self.feature_scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made = input_ids.is_floating_point()  # features that were made before (see `frozen`)
        return self.head(input_ids if made else self.features(input_ids, attention_mask)).float()


class Continuer(nn.Module):
    """A causal model that scores text: forward(input_ids [B, L], attention_mask [B, L], positions [B, A]) -> logits [B, A, V], float32,
    of what follows each position. The output layer is asked at these positions alone."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    @property
    def backbone(self) -> nn.Module:
        return self.whole.base_model

    @property
    def head(self) -> nn.Module:
        return self.whole.get_output_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        read = hidden.gather(1, positions.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[2]))
        return self.head(read).float()


def load(name: str, task: Task, tune: str, seed: int = 0, device: str = "cpu") -> Classifier | Continuer:
    """The model for a task, in float32 and evaluation mode, with `requires_grad` set by `tune`.

    Raises UsageError for weights that cannot be had, and for a task that this kind of model cannot be asked.
    """
    from . import tuning

    stanza = weights.stanza(name)
    torch.manual_seed(seed)  # random weights of a tiny model and of LoRA; nothing private is drawn from it
    whole = _pretrained(name, stanza)
    model = Continuer(whole) if continues(name, task) else _classifier(name, stanza, whole, task, tune)
    del whole
    tuning.select(model, tune, seed)
    model.eval()
    if stanza["kind"] == "encoder":
        with torch.no_grad():
            model.head.weight.copy_(_embed(model, [tokenizer(name, 64)(word) for word in task.words]))
    return device_map.place(model, device)


def _pretrained(name: str, stanza: dict) -> nn.Module:
    """The transformer, with the head that it was trained with, if we read it."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    makers = {"encoder": "AutoModel", "causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}
    maker = getattr(transformers, makers[stanza["kind"]])
    extra = {"add_pooling_layer": False} if stanza["kind"] == "encoder" else {}
    if "config" in stanza:
        whole = maker.from_config(_config(name), **extra)
    else:
        whole = checkpoint_files.load(name, maker, **extra)
    whole.config.use_cache = False  # of keys and values, which one pass over whole texts has no use for
    return whole


def _config(name: str):
    """The configuration of transformers."""
    from transformers import AutoConfig

    if own := dict(weights.stanza(name).get("config", {})):
        return AutoConfig.for_model(own.pop("model_type"), **own)
    with weights.refusals(name):
        return AutoConfig.from_pretrained(weights.place(name))


def positions(name: str) -> int:
    """Tokens of the longest text that the model reads. UsageError for a model that cannot be had."""
    return architectures.positions(_config(name).get_text_config())


def _classifier(name: str, stanza: dict, whole: nn.Module, task: Task, tune: str) -> Classifier:
    """With the head at its start, but for an encoder's."""
    kind = stanza["kind"]
    if kind == "encoder":
        head = own_head(whole.config.hidden_size, len(task.labels))
        return Classifier(whole, head, kind, stanza.get("feature_scale", 1.0))
    head = head_of(whole, answer_tokens(name, task), tied=tune == "full")
    if kind == "causal":
        return Classifier(whole.base_model, head, kind)
    inner = WordLayer(whole.lm_head) if hasattr(whole, "lm_head") else whole.cls.predictions.transform
    return Classifier(whole.base_model, head, kind, transform=inner, mask=marks(name).special["mask"])


def continues(name: str, task: Task) -> bool:
    """Whether the model is asked for text: where answers are free, or one of a causal model's is more than one token.

    Raises UsageError for a free answer of a model that is not causal.
    """
    causal = weights.stanza(name)["kind"] == "causal"
    if not task.labels and not causal:
        raise UsageError(f"task {task.name} asks for text, which {name} does not write: give a causal model")
    return causal and (not task.labels or any(len(ids) != 1 for ids in _answers(name, task)))


def answer_tokens(name: str, task: Task) -> list[int]:
    """The one token that each answer adds to the prompt, or that each word is in the place of the mask."""
    found = _answers(name, task)
    for label, ids in zip(task.labels, found, strict=True):
        if len(ids) != 1:
            raise UsageError(
                f"the word for {label!r} of task {task.name} is {len(ids)} tokens of {name}: choose a one-token word"
            )
    return [ids[0] for ids in found]


def _answers(name: str, task: Task) -> list[list[int]]:
    """The tokens of each answer."""
    plain = marks(name).plain
    if weights.stanza(name)["kind"] == "causal":
        end = prompts.tail(task.prompt).strip(" ")
        return [plain(end + answer)[len(plain(end)) :] for answer in task.answers]
    if "masked" not in task.stanza:
        raise UsageError(
            f"task {task.name} has no template for masked models such as {name}: add one to its stanza"
        )
    return [plain(f" {word}") for word in task.stanza["masked"]["words"]]


def _embed(model: Classifier, sequences: list[list[int]]) -> Tensor:
    """Unit-norm features of token sequences: the label words, which are public.

    In float64 on the CPU, then rounded: the same bits whatever the machine and its threads, so that a transcript fits its base.
    """
    model.double()
    rows = []
    for ids in map(torch.tensor, sequences):
        rows.append(model.features(ids[None], torch.ones_like(ids)[None])[0] / model.feature_scale)
    model.float()
    return torch.stack(rows).float()
