"""A language model as a classifier: a backbone, one feature per text, and a head with one row per label.

The head starts where no private example is needed: an encoder's rows are the embeddings of the label words, a causal or masked
model's are those of its own output layer for the answer tokens. The model is therefore a zero-shot classifier before any training.
The rows are a copy: where a model shares its output layer with its table of embeddings, training does not keep them the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import prompts, sources
from .sources import catalogue, digest
from .tasks import Task
from .tokens import marks, tokenizer

__all__ = ["Classifier", "catalogue", "digest", "load", "tokenizer"]


class Classifier(nn.Module):
    """forward(input_ids [B, L], attention_mask [B, L]) -> logits [B, labels], float32."""

    def __init__(
        self,
        backbone: nn.Module,
        labels: int,
        kind: str,
        feature_scale: float = 1.0,
        transform: nn.Module | None = None,
        mask: int | None = None,
        width: int | None = None,
    ) -> None:
        """`transform` is what a masked model has before its output layer, `mask` its mask token; `width` of a feature, if another
        than the backbone's."""
        super().__init__()
        self.backbone, self.kind, self.feature_scale = backbone, kind, feature_scale
        if transform is not None:
            self.transform = transform
        self.mask = mask
        self.head = nn.Linear(width or backbone.config.hidden_size, labels)
        nn.init.zeros_(self.head.bias)

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
            read = hidden[torch.arange(len(hidden), device=hidden.device), read]
            return self.transform(read) if masked else read
        mask = attention_mask[..., None].to(hidden)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1) * self.feature_scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.features(input_ids, attention_mask)).float()


class WordLayer(nn.Module):
    """What RoBERTa has between its hidden states and the scores of words, without the words: [B, H] -> [B, H]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.dense, self.layer_norm = head.dense, head.layer_norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer_norm(nn.functional.gelu(self.dense(hidden)))


def load(name: str, task: Task, tune: str, seed: int = 0, device: str = "cpu") -> Classifier:
    """The classifier for a task, in float32 and evaluation mode, with `requires_grad` set by `tune`.

    Raises UsageError for weights that cannot be had and for an answer that is not one token of the model.
    """
    from . import tuning

    stanza = sources.stanza(name)
    torch.manual_seed(seed)  # random weights of a tiny model and of LoRA; nothing private is drawn from it
    whole = _pretrained(name, stanza)
    model = _classifier(name, stanza, whole, task)
    del whole
    tuning.select(model, tune)
    model.eval()
    if stanza["kind"] == "encoder":
        with torch.no_grad():
            model.head.weight.copy_(_embed(model, [tokenizer(name, 64)(word) for word in task.words]))
    return model.to(device)


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
        config = dict(stanza["config"])
        config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        return maker.from_config(config, **extra)
    with sources.refusals(name):
        return maker.from_pretrained(sources.place(name), dtype=torch.float32, **extra)


def _classifier(name: str, stanza: dict, whole: nn.Module, task: Task) -> Classifier:
    """With the head at its start, but for an encoder's."""
    kind, labels = stanza["kind"], len(task.labels)
    if kind == "encoder":
        return Classifier(whole, labels, kind, stanza.get("feature_scale", 1.0))
    output = whole.get_output_embeddings()
    extra = {"width": output.weight.shape[1]}
    if kind == "masked":
        inner = whole.lm_head if hasattr(whole, "lm_head") else whole.cls.predictions.transform
        extra |= {"transform": WordLayer(inner) if hasattr(whole, "lm_head") else inner}
        extra |= {"mask": marks(name).special["mask"]}
    model, tokens = Classifier(whole.base_model, labels, kind, **extra), answer_tokens(name, task)
    with torch.no_grad():
        model.head.weight.copy_(output.weight[tokens])
        if output.bias is not None:
            model.head.bias.copy_(output.bias[tokens])
    return model


def answer_tokens(name: str, task: Task) -> list[int]:
    """The one token that each answer adds to the prompt, or that each word is in the place of the mask."""
    plain, masked = marks(name).plain, sources.stanza(name)["kind"] == "masked"
    if masked and "masked" not in task.stanza:
        raise UsageError(
            f"task {task.name} has no template for masked models such as {name}: add one to its stanza"
        )
    before = [] if masked else plain(prompts.tail(task.prompt))
    tokens = []
    for answer in [f" {word}" for word in task.stanza["masked"]["words"]] if masked else task.answers:
        ids = plain(answer) if masked else plain(prompts.tail(task.prompt) + answer)
        if len(ids) != len(before) + 1:
            raise UsageError(
                f"the answer {answer!r} of task {task.name} is {len(ids) - len(before)} tokens of {name}: choose a one-token word"
            )
        tokens.append(ids[-1])
    return tokens


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
