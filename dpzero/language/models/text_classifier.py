"""A language model as a classifier: a backbone, one feature vector per text, and a head.

The head has one row per label. The head starts without private examples: an encoder's rows are the embeddings
of the label words; a causal or masked model's are the rows of its own output layer for the answer tokens. So
the model is a zero-shot classifier before any training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..data.tasks import Task
from . import model_catalogue
from .encoding import Examples, answer_tokens, scores_text, tokenizer, tokenizer_info
from .model_catalogue import Stanza


def last_hidden_state(backbone: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden states of a transformers model without its output layer, [B, L, H]."""
    extra = {}
    if backbone.config.model_type == "bert":
        # one row of positions for each text: a broadcast row would give Opacus one gradient for all texts
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        extra["position_ids"] = positions.expand_as(input_ids)
    return backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state


class Classifier(nn.Module):
    """forward(input_ids [B, L], attention_mask [B, L]) -> logits [B, labels], float32."""

    backbone: Any
    head: Any
    mask: Any

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        kind: str,
        feature_scale: float = 1.0,
        transform: nn.Module | None = None,
        mask: int | None = None,
    ) -> None:
        """A classifier of kind "encoder", "causal" or "masked".

        Args:
            backbone: from transformers, without its output layer.
            head: features [B, H] -> logits [B, labels].
            kind: where the feature is read, see `features`.
            feature_scale: norm of an encoder's features.
            transform: the layer of a masked model before its output layer, [B, H] -> [B, H].
            mask: the mask token of a masked model.
        """
        super().__init__()
        self.backbone, self.kind, self.feature_scale = backbone, kind, feature_scale
        self.transform, self.mask = transform or nn.Identity(), mask
        self.head = head

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """One feature vector per text, [B, H].

        The mean hidden state of an encoder, scaled to norm feature_scale; the last token's of a causal model;
        the first mask's of a masked one.
        """
        hidden = last_hidden_state(self.backbone, input_ids, attention_mask)
        if self.kind == "encoder":
            mask = attention_mask[..., None].to(hidden)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return nn.functional.normalize(mean, dim=-1) * self.feature_scale
        if self.kind == "masked":
            position = (input_ids == self.mask).int().argmax(1)  # the first mask: a text might hold another
        else:
            position = attention_mask.sum(1) - 1  # padding is on the right
        feature = hidden[torch.arange(len(hidden), device=hidden.device), position.to(hidden.device)]
        return self.transform(feature)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.features(input_ids, attention_mask)).float()


class HeadAlone(nn.Module):
    """The head of a Classifier, which it shares: forward(features [B, H], mask) -> logits [B, labels], float32.

    A matrix product of many rows may sum a row's terms in an order that depends on the number of rows. Without
    gradients each row is therefore a product of its own.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.eval()

    def forward(self, features: Tensor, _: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # for the hooks of DP-SGD
            return self.head(features).float()
        weight, bias, rows = self.head.weight, self.head.bias, len(features)
        shape = rows, *weight.t().shape
        return torch.baddbmm(bias.expand(rows, 1, -1), features[:, None], weight.t().expand(shape))[:, 0]


class TextScorer(nn.Module):
    """A causal model that scores text.

    forward(input_ids [B, L], attention_mask [B, L], positions [B, A]) -> logits [B, A, V], float32. The
    logits are those of the token after each position. The output layer runs at these positions alone.
    """

    language_model: Any

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model = language_model

    @property
    def backbone(self) -> Any:
        return self.language_model.base_model

    @property
    def head(self) -> Any:
        return self.language_model.get_output_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        index = positions.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[2])
        return self.head(hidden.gather(1, index)).float()


def next_token_logits(model: Any, texts: Examples, token_budget: int) -> Tensor:
    """Scores of the whole vocabulary for the token after each text, [n, V], by the model's table of embeddings.

    Args:
        model: a Classifier of a causal model whose output layer is that table.
        texts: n of them.
        token_budget: padded tokens of a micro-batch.
    """
    table = model.backbone.get_input_embeddings().weight
    logits = table.new_zeros(len(texts), len(table))
    for order, part in texts.parts(token_budget):
        ids, mask, _ = part.padded(table.device)
        scores = model.features(ids, mask) @ table.T  # bfloat16 within a loss's `precision` of that type
        logits[torch.from_numpy(order.copy()).to(table.device)] = scores.to(logits.dtype)
    return logits


# -- heads --------------------------------------------------------------------------------------------------


class MaskedTransform(nn.Module):
    """RoBERTa's layer between hidden states and its output layer: [B, H] -> [B, H]."""

    def __init__(self, lm_head: Any) -> None:
        super().__init__()
        self.dense, self.layer_norm = lm_head.dense, lm_head.layer_norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer_norm(nn.functional.gelu(self.dense(hidden)))


class Shift(nn.Module):
    """Adds a bias, [B, K] -> [B, K]: a layer for which DP-SGD can take per-sample gradients."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, scores: Tensor) -> Tensor:
        return torch.add(scores, self.bias)


class VocabularyHead(nn.Module):
    """Scores of K words, [B, H] -> [B, K], by their rows of a table with a row for each word of the vocabulary.

    The table is the model's own embeddings (tied), or an output layer beside them that starts with the same
    values (untied). The output biases of the K words are copied. Each text looks the rows up separately, as it
    does for its input: perturbations touch only rows that are looked up, and per-sample gradients of DP-SGD add
    both uses of a tied row.
    """

    words: Tensor
    shift: nn.Module

    def __init__(self, output: nn.Linear, words: Sequence[int], tied: bool) -> None:
        super().__init__()
        self.rows = nn.Embedding(output.weight.shape[0], output.weight.shape[1], device="meta")
        self.rows.weight = output.weight if tied else nn.Parameter(output.weight.detach().clone())
        self.register_buffer("words", torch.tensor(words), persistent=False)
        self.shift = nn.Identity() if output.bias is None else Shift(output.bias.detach()[self.words].clone())

    def forward(self, feature: Tensor) -> Tensor:
        rows = self.rows(self.words.expand(len(feature), -1))
        return self.shift((rows @ feature[..., None])[..., 0])


def new_head(width: int, labels: int) -> nn.Linear:
    """[B, width] -> [B, labels], with zero biases; the caller sets the rows."""
    head = nn.Linear(width, labels)
    nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def label_head(
    language_model: Any, words: Sequence[int], whole: bool, tied: bool = True
) -> nn.Linear | VocabularyHead:
    """A language model's output layer for K label words of one token each, [B, H] -> [B, K].

    Args:
        language_model: from transformers, with its output layer.
        words: token ids, in the order of the labels.
        whole: keep the rows of the other words, too; else those of the label words are copied.
        tied: keep a whole output layer tied to the input embeddings, if the model ties them.
    """
    output = language_model.get_output_embeddings()
    if whole and (not tied or output.weight is language_model.get_input_embeddings().weight):
        return VocabularyHead(output, words, tied)
    head = new_head(output.weight.shape[1], len(words))
    head.weight.copy_(output.weight[words])
    if output.bias is not None:
        head.bias.copy_(output.bias[words])
    return head


# -- trainable parameters -----------------------------------------------------------------------------------

TUNES = ("full", "bias", "lora", "prefix", "side", "reversible", "head", "embeddings", "top")
NETWORKS = ("side", "reversible")  # of DP-MemArc
LORA_TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"]}  # others: q_proj and v_proj
LORA_RANK, LORA_ALPHA = 8, 16  # as in MeZO and DPZero
LORA_HEADS = ("frozen", "trained")
LORA_A = ("trained", "frozen")


def select_trainable(
    model: Any,
    tune: str,
    seed: int = 0,
    lora_head: str = "frozen",
    lora_a: str = "trained",
    **network: Any,
) -> None:
    """Set `requires_grad` on the parameters of a Classifier or TextScorer.

    Args:
        model: with `backbone` and `head`, and for a trained lora_head `transform`.
        tune: full: all parameters; only then a tied head stays tied. bias: every bias (in a model without
            biases, the gains of its norms) and the head. lora: rank-8 adapters on query and value. prefix:
            five keys and values in every layer (`prefix_tuning`). side, reversible: DP-MemArc's networks
            (`side_network`, `reversible_network`). With these four an encoder's head is trainable; a head copied
            from the model's output layer is not, as in MeZO's code on OPT. head: the head alone; of a
            TextScorer its output layer, which may be its table of embeddings. embeddings: the table of word
            embeddings and the head. top: the last layer and the head.
        seed: of the start of a prefix.
        lora_head: trained: with the adapters, the head of a masked model and the layer before it, as in MeZO's
            code on RoBERTa (medium_models/run.py, lines 939-942).
        lora_a: frozen: the first matrix A of each adapter B A stays as PEFT drew it, so that the adapter is linear
            in what is trained (FFA-LoRA, Sun et al., 2024, arXiv 2403.12313, here without its federation; its code
            was not read).
        network: settings of a side or reversible network, see its `attach`.
    """
    if tune not in TUNES:
        raise UsageError(f"tune is {tune!r}: give one of {', '.join(TUNES)}")
    body = [(name, p) for name, p in model.named_parameters() if not name.startswith("head.")]
    has_biases = any(name.endswith("bias") for name, _ in body)
    for name, parameter in body:
        is_bias = name.endswith("bias") if has_biases else "norm" in name
        parameter.requires_grad_(tune == "full" or (tune == "bias" and is_bias))
    if tune in ("lora", "prefix", *NETWORKS) and getattr(model, "kind", None) in ("masked", "causal"):
        model.head.requires_grad_(lora_head == "trained")
    if tune in ("head", "embeddings", "top"):
        model.head.requires_grad_(True)
    if tune == "top":
        from .frozen_layers import layers_of

        layers_of(model.backbone)[-1].requires_grad_(True)
    if tune == "embeddings":
        model.backbone.get_input_embeddings().weight.requires_grad_(True)
    if tune == "prefix":
        from . import prefix_tuning

        prefix_tuning.attach(model.backbone, seed)
    if tune in NETWORKS:
        from . import reversible_network, side_network

        attach: Any = side_network.attach if tune == "side" else reversible_network.attach
        attach(model.backbone, **network)
    if tune == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        targets = LORA_TARGETS.get(model.backbone.config.model_type, ["q_proj", "v_proj"])
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=targets)
        inject_adapter_in_model(config, model.backbone)
        if lora_head == "trained":
            model.transform.requires_grad_(True)  # the layer before a masked model's output layer
        for name, parameter in model.backbone.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(lora_a == "trained")


# -- loading ------------------------------------------------------------------------------------------------


def load(
    name: str,
    task: Task,
    tune: str,
    seed: int = 0,
    device: str = "cpu",
    *,
    tie_embeddings: bool = True,
    lora_head: str = "frozen",
    lora_a: str = "trained",
    **network: Any,
) -> Classifier | TextScorer:
    """The model for a task, in float32 and evaluation mode.

    Args:
        name: of models.yaml.
        task: decides whether the model classifies or scores text, and where its head starts.
        tune: the trainable parameters (see `select_trainable`).
        seed: of the random weights of a tiny model, of LoRA, of a prefix and of DP-MemArc's networks. Nothing
            private is drawn from it.
        device: one device, or several with commas between.
        tie_embeddings: false: with tune full, a masked model's output layer is trained apart from its embeddings.
        lora_head: frozen or trained (see `select_trainable`).
        lora_a: trained or frozen (see `select_trainable`).
        network: settings of a side or reversible network.

    Raises:
        UsageError: weights are missing or damaged, or this kind of model cannot do the task.
    """
    stanza = model_catalogue.stanza(name)
    torch.manual_seed(seed)
    language_model = model_catalogue.load_pretrained(name)
    if scores_text(name, task):
        model: Classifier | TextScorer = TextScorer(language_model)
    else:
        whole = tune == "full" or lora_head == "trained"
        tied = tie_embeddings and tune == "full"
        model = _classifier(name, stanza, language_model, task, whole, tied)
    del language_model
    select_trainable(model, tune, seed, lora_head, lora_a, **network)
    model.eval()
    if stanza["kind"] == "encoder":
        with torch.no_grad():
            model.head.weight.copy_(_embed(model, [tokenizer(name, 64)(word) for word in task.words]))
    if "," not in device:
        return model.to(device)
    return spread_over_devices(model, device.split(","))


def _classifier(
    name: str, stanza: Stanza, language_model: Any, task: Task, whole: bool, tied: bool
) -> Classifier:
    """With the head at its start, except an encoder's. `whole`, `tied`: see `label_head`."""
    kind = stanza["kind"]
    if kind == "encoder":
        head: nn.Module = new_head(language_model.config.hidden_size, len(task.labels))
        return Classifier(language_model, head, kind, stanza.get("feature_scale", 1.0))
    head = label_head(language_model, answer_tokens(name, task), whole, tied)
    if kind == "causal":
        return Classifier(language_model.base_model, head, kind)
    if hasattr(language_model, "lm_head"):
        transform = MaskedTransform(language_model.lm_head)
    else:
        transform = language_model.cls.predictions.transform
    mask = tokenizer_info(name).special["mask"]
    return Classifier(language_model.base_model, head, kind, transform=transform, mask=mask)


def _embed(model: Any, sequences: list[list[int]]) -> Tensor:
    """Unit-norm features [n, H], float32, of token sequences: the label words, which are public.

    In float64 on the CPU, then rounded: the same bits on every machine, so that a transcript fits its base
    model.
    """
    model.double()
    rows = []
    for ids in map(torch.tensor, sequences):
        rows.append(model.features(ids[None], torch.ones_like(ids)[None])[0] / model.feature_scale)
    model.float()
    return torch.stack(rows).float()


# -- several devices ----------------------------------------------------------------------------------------


def spread_over_devices(model: nn.Module, devices: Sequence[str]) -> Any:
    """Spread the layers over the devices; the first device has inputs and outputs.

    Directions, perturbations and updates are computed tensor by tensor, so a step needs nothing more.
    """
    from accelerate import dispatch_model

    device_map = {unit: devices[number] for unit, number in assign_devices(model, len(devices)).items()}
    return dispatch_model(model, device_map, main_device=devices[0], force_hooks=True)


def assign_devices(model: nn.Module, count: int) -> dict[str, int]:
    """{unit: number of its device}, in the model's order, with about as many bytes on each device.

    Tied parameters stay together.
    """
    sizes = {
        name: sum(p.numel() * p.element_size() for p in module.parameters()) for name, module in units(model)
    }
    devices: dict[str, int] = {}
    of_parameter: dict[int, int] = {}
    done, total = 0, max(1, sum(sizes.values()))
    for name, module in units(model):
        fair = min(count - 1, int(count * (done + sizes[name] / 2) / total))
        tied = [of_parameter[id(p)] for p in module.parameters() if id(p) in of_parameter]
        devices[name] = tied[0] if tied else fair
        of_parameter |= {id(p): devices[name] for p in module.parameters()}
        done += sizes[name]
    return devices


def units(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules that stay on one device: layers of a stack, and modules with tensors of their own."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    children = list(module.named_children())
    if own or not children:
        yield name, module
        return
    for key, child in children:
        path = f"{name}.{key}" if name else key
        yield from [(path, child)] if isinstance(module, nn.ModuleList) else units(child, path)
