"""Small models with random weights in the place of published ones, as `save_pretrained` writes them: for a rehearsal.

A folder of them is a `model_dir`. A stand-in has the architecture of its model, few and narrow layers, and a byte-level
tokenizer, for which each answer of a task is one token, as it is for the tokenizers of RoBERTa and OPT.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ...errors import UsageError
from ..data import tasks
from . import model_catalogue, random_models

SIZES = {  # those that a shape of architectures.yaml has take the place of its own
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SPECIAL = {  # token -> what it is; in RoBERTa's and OPT's order
    "<s>": ("bos", "cls"),
    "<pad>": ("pad",),
    "</s>": ("eos", "sep"),
    "<unk>": ("unk",),
    "<mask>": ("mask",),
}


def write(name: str, folder: Path) -> None:
    """Write the stand-in of a model of the hub: its configuration, weights and tokenizer.

    Raises UsageError for a model of which architectures.yaml has no shape.
    """
    import transformers

    shape = random_models.catalogue().get(name)
    if shape is None:
        known = ", ".join(random_models.catalogue())
        raise UsageError(f"no shape of model {name} is known, but of {known}: give a folder of your own")
    tokenizer = byte_level(_answers(tasks.names()))
    sizes = {key: size for key, size in SIZES.items() if key in shape}
    sizes["vocab_size"] = tokenizer.get_vocab_size()
    values = {key: value for key, value in shape.items() if key != "parameters"} | sizes
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    auto_class: Any = getattr(transformers, model_catalogue.KINDS[model_catalogue.stanza(name)["kind"]][0])
    auto_class.from_config(transformers.AutoConfig.for_model(**values)).save_pretrained(folder)
    special = {f"{name}_token": token for token, names in SPECIAL.items() for name in names}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _answers(names: Iterable[str]) -> list[str]:
    """The words of the tasks' answers, and at their masks."""
    words: list[str] = []
    for name in names:
        task = tasks.load(name)
        words += [answer.strip() for answer in task.answers]
        words += task.stanza.get("masked", {}).get("words", ())
    return list(dict.fromkeys(word for word in words if " " not in word))


def byte_level(words: Iterable[str]) -> Tokenizer:
    """A tokenizer of bytes, in which each of the words is one token with a space before it, and one without."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *letters, *(space + word for word in words for space in ("", "Ġ"))]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
