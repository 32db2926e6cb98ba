"""Export: the fine-tuned model of a record as a folder that plain transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import UsageError
from ..language.data import tasks
from ..language.models import encoding, model_catalogue, text_classifier
from ..language.models.text_classifier import Classifier, TextScorer
from .replay import rebuild

HEAD = "classifier.safetensors"


def export(file: Path, out: Path, device: str | None = None) -> dict:
    """Write the model of a record, as `save_pretrained` does, and its tokenizer.

    An encoder's head, for which transformers has no place, is written beside it.

    Args:
        file: a record of a zeroth-order method, with its transcript beside it.
        out: a folder, new or empty.
        device: where the weights are replayed.

    Returns:
        The record, and `usage`: Python that loads the folder and classifies a text.

    Raises:
        UsageError: a folder that holds files, a model with parts of its own (prefix, side, reversible), or a record whose weights cannot be rebuilt.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds files already: give a new folder")
    rebuilt = rebuild(file, device)
    cell = rebuilt.record["cell"]
    if not rebuilt.match:
        raise UsageError(f"the replayed weights are not those of {file}: export on the machine of its run")
    if (tune := cell["settings"]["tune"]) in ("prefix", "side", "reversible"):
        raise UsageError(
            f"tune {tune} adds what save_pretrained does not write: train with tune lora, bias or full"
        )
    model, task = rebuilt.model.to("cpu"), tasks.load(cell["task"])
    _merge_adapters(model)
    language_model = model_catalogue.load_pretrained(cell["model"])
    _copy_weights(model, language_model)
    usage = _usage(model, language_model, task, cell, out)
    language_model.config.use_cache = True
    language_model.save_pretrained(out)
    if "config" not in model_catalogue.stanza(cell["model"]):  # else the tokens are checksums of words
        encoding.pretrained_tokenizer(cell["model"]).save_pretrained(out)
    return {"record": rebuilt.record, "usage": usage}


def _merge_adapters(model: nn.Module) -> None:
    """Add each adapter to its matrix, and put the plain layer in its place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [pair for pair in model.named_modules() if isinstance(pair[1], LoraLayer)]:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _copy_weights(model: Any, language_model: Any) -> None:
    """The fine-tuned tensors, in the model as transformers builds it."""
    if isinstance(model, TextScorer):
        language_model.load_state_dict(model.language_model.state_dict())
        return
    language_model.base_model.load_state_dict(model.backbone.state_dict())
    if model.kind == "masked":
        layer = getattr(language_model, "lm_head", None)
        if layer is None:
            language_model.cls.predictions.transform.load_state_dict(model.transform.state_dict())
        else:
            layer.dense.load_state_dict(model.transform.dense.state_dict())
            layer.layer_norm.load_state_dict(model.transform.layer_norm.state_dict())


@torch.no_grad()
def _usage(model: Any, language_model: Any, task: tasks.Task, cell: dict, out: Path) -> str:
    """Puts the head where transformers reads it. Returns Python that classifies a text."""
    labels = list(task.labels)
    if isinstance(model, TextScorer):
        return SCORER
    if model.kind == "encoder":
        out.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in model.head.state_dict().items()}, out / HEAD)
        return ENCODER.format(
            labels=labels, scale=model.feature_scale, head=HEAD, length=cell["settings"]["max_length"]
        )
    words = encoding.answer_tokens(cell["model"], task)
    bias = _write_rows(model, language_model, words)
    return (CAUSAL if model.kind == "causal" else MASKED).format(labels=labels, words=words, bias=bias)


def _write_rows(model: Classifier, language_model: Any, words: list[int]) -> list[float]:
    """Write the head into the output layer, and untie that from the embeddings if the two differ.

    Returns:
        The labels' biases, if the output layer has none, else zeros.
    """
    head, output = model.head, language_model.get_output_embeddings()
    whole = isinstance(head, text_classifier.VocabularyHead)
    tied = whole and head.rows.weight is model.backbone.get_input_embeddings().weight
    if not tied and output.weight is language_model.get_input_embeddings().weight:
        for name, tensor in list(output.named_parameters()):  # saved under names of their own
            setattr(output, name, nn.Parameter(tensor.detach().clone()))
        language_model.config.tie_word_embeddings = False
    if whole:
        output.weight.copy_(head.rows.weight)
    else:
        output.weight[words] = head.weight
    bias = getattr(head.shift if whole else head, "bias", None)
    if bias is None:
        return [0.0] * len(words)
    if output.bias is None:
        return bias.tolist()
    output.bias[words] = bias
    return [0.0] * len(words)


ENCODER = """\
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder, labels = ".", {labels}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
head = load_file(f"{{folder}}/{head}")
inputs = tokenizer(["a text"], return_tensors="pt", padding=True, truncation=True, max_length={length})
with torch.no_grad():
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    features = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1) * {scale}
    print([labels[i] for i in (features @ head["weight"].T + head["bias"]).argmax(1)])
"""
CAUSAL = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, labels = ".", {labels}
words, bias = {words}, torch.tensor({bias})  # the token and the bias of each label
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
inputs = tokenizer("a text in the prompt below", return_tensors="pt")
with torch.no_grad():
    print(labels[int((model(**inputs).logits[0, -1, words] + bias).argmax())])
"""
MASKED = """\
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

folder, labels = ".", {labels}
words, bias = {words}, torch.tensor({bias})  # the token and the bias of each label
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
inputs = tokenizer("a text in the template below", return_tensors="pt")
position = (inputs["input_ids"][0] == tokenizer.mask_token_id).int().argmax()
with torch.no_grad():
    print(labels[int((model(**inputs).logits[0, position, words] + bias).argmax())])
"""
SCORER = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
inputs = tokenizer("a text in the prompt below", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
"""
