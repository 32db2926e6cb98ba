"""DP-SGD on the families of the papers, tied and untied, in all ways: against one backward pass an example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from baselines._per_sample_gradients import watching
from baselines.dp_sgd import DPSGD, HOOKS
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, random_models, text_classifier
from dpzero.language.models.encoding import Continuations
from dpzero.language.models.losses import ContinuationLoss
from dpzero.language.models.text_classifier import MaskedTransform, label_head
from tests.baselines.brute_force import BATCH_SIZE, budget, check_step

every_way = pytest.mark.parametrize("clipping", HOOKS)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}
OPT = SIZES | {"word_embed_proj_dim": 16, "ffn_dim": 24, "dropout": 0.0}
LLAMA = SIZES | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
FAMILIES = {
    "roberta": SIZES
    | {
        "intermediate_size": 24,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "opt": OPT,
    "opt, norms last, projected": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8},
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma2": LLAMA | {"query_pre_attn_scalar": 8},
}
ADAPTED = {
    "opt": [["q_proj", "v_proj"], ["fc1", "fc2"]],
    "llama": [["q_proj", "v_proj"], ["gate_proj", "down_proj"]],
    "roberta": [["query", "value"], ["dense"]],
}


def language_model(family: str, tied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family.split(",")[0], **FAMILIES[family], tie_word_embeddings=tied, initializer_range=0.3
    )
    kind = AutoModelForMaskedLM if family == "roberta" else AutoModelForCausalLM
    return kind.from_config(config).eval()


class AtOnePosition(nn.Module):
    """The words' scores from the model's own output layer, which is its embedding where it is tied, at each text's last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
        hidden = hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]
        return self.model.lm_head(hidden).float()


@pytest.fixture(scope="module")
def batch() -> encoding.Examples:
    """Padded texts of 1 to 9 tokens; some hold a token many times, one the padding token (1)."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(3, 97, length).tolist() for length in (1, 9, 4, 2)]
    return encoding.Examples.from_token_ids(
        [*texts, [5, 1, 7], [5, 7, 5, 5, 7, 5], [11] * 9], [0, 1, 0, 1, 1, 0, 1]
    )


def freeze_unused(model: nn.Module, batch: encoding.Examples) -> nn.Module:
    """Where nothing is tied, RoBERTa's second bias is not used, nor the vocabulary's rows beside a head of two."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = losses.CrossEntropy(2048)(model, batch).sum()
    for p, gradient in zip(
        parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True
    ):
        p.requires_grad_(gradient is not None)
    return model


@every_way
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_is_exact_through_the_models_own_output_layer(family, tied, clipping, batch):
    """Tied, one parameter is looked up and scores every word; the labels are words that the texts hold."""
    words = encoding.Examples(batch.tokens, batch.offsets, np.array([5, 11, 5, 7, 3, 5, 11]))
    for clip, token_budget in ((1.0, 2048), (20.0, 16)):
        model = AtOnePosition(language_model(family, tied))
        head, embedding = model.model.get_output_embeddings(), model.model.get_input_embeddings()
        assert (head.weight is embedding.weight) == tied
        bitten = check_step(
            freeze_unused(model, words), losses.CrossEntropy(token_budget), words, clip, clipping
        )
        assert bitten == 7 or clip > 1.0


@every_way
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["roberta", "opt", "llama"])
def test_full_fine_tuning_is_exact_with_two_words_for_a_head(family, tied, clipping, batch):
    model = freeze_unused(random_models.Answering(language_model(family, tied)), batch)
    assert check_step(model, losses.CrossEntropy(24), batch, 0.1, clipping) >= 6


@every_way
@pytest.mark.parametrize(
    "family, tied",
    [*((family, True) for family in FAMILIES), ("roberta", False)],
    ids=lambda value: str(value),
)
def test_full_fine_tuning_is_exact_with_label_words_from_a_table_of_the_vocabulary(
    family, tied, clipping, batch
):
    """Texts hold the words, once or many times: tied, the same row is read and scored, and its two gradients are one."""
    for clip, token_budget in ((0.1, 2048), (20.0, 16)):
        whole = language_model(family, True)
        inner = MaskedTransform(whole.lm_head) if family == "roberta" else None
        kind = "causal" if inner is None else "masked"
        head = label_head(whole, [5, 11], whole=True, tied=tied)
        model = text_classifier.Classifier(whole.base_model, head, kind, transform=inner, mask=7)
        assert (head.rows.weight is whole.get_input_embeddings().weight) == tied
        loss = losses.CrossEntropy(token_budget)
        bitten = check_step(freeze_unused(model, batch), loss, batch, clip, clipping)
        assert bitten >= 4 or clip > 0.1


@every_way
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("family", ["roberta", "opt", "llama"])
def test_a_batch_of_one_is_exact_and_an_empty_one_moves_nothing_without_noise(family, size, clipping, batch):
    for chosen in (batch[np.arange(i, i + size)] for i in (0, 5)):
        model = AtOnePosition(language_model(family, True))
        assert check_step(model, losses.CrossEntropy(2048), chosen, 0.1, clipping) == size


def adapted(family: str, targets: list[str]) -> random_models.Answering:
    from peft import LoraConfig, inject_adapter_in_model

    model = random_models.Answering(language_model(family, True))
    model.model.requires_grad_(False)
    torch.manual_seed(1)
    lora = LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
    inject_adapter_in_model(lora, model.model)
    return model


@every_way
@pytest.mark.parametrize(("family", "targets"), [(name, t) for name, both in ADAPTED.items() for t in both])
def test_lora_on_a_tied_model_is_exact(family, targets, clipping, batch):
    """OPT hands its feed-forward layers all tokens in a row: an adapter there sees nothing else, and texts are clipped, not tokens."""
    model = adapted(family, targets)
    assert check_step(model, losses.CrossEntropy(2048), batch, 0.1, clipping) == 7


@every_way
def test_lora_with_a_trained_head_is_exact(clipping):
    """The whole output layer, the layer before it and the adapters are one example's gradient."""
    model = text_classifier.load("tiny-masked", tasks.load("trec"), "lora", lora_head="trained")
    texts = [[1, *range(40, 40 + n), 2, 1] for n in (1, 5, 3)]  # 2 is the mask
    batch = encoding.Examples.from_token_ids(texts, [0, 2, 5])
    assert check_step(model, losses.CrossEntropy(2048), batch, 0.1, clipping) == 3


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@every_way
def test_lora_on_an_embedding_is_refused(clipping, batch):
    with pytest.raises(
        RuntimeError, match=r"lora_embedding_A\.default is used 1 times .*, 0 of them by its layer"
    ):
        method = DPSGD(
            adapted("opt", ["embed_tokens"]),
            losses.CrossEntropy(2048),
            budget(0.0),
            learning_rate=1.0,
            clip=1.0,
            clipping=clipping,
        )
        method.step(batch)


def test_opt_is_refused_where_a_loss_runs_it_on_part_of_a_batch(batch):
    """Half the texts of twice the length have as many tokens: what is one text must not be guessed from their number."""

    class Halves(losses.CrossEntropy):
        def __call__(self, model, batch):
            halves = np.array_split(np.arange(len(batch)), 2)
            return torch.cat([super(Halves, self).__call__(model, batch[half]) for half in halves])

    me = DPSGD(adapted("opt", ["fc1", "fc2"]), Halves(2048), budget(0.0), learning_rate=1.0, clip=1.0)
    even = encoding.Examples.from_token_ids([[5, 6, 7, 8]] * 4, [0] * 4)
    with pytest.raises(RuntimeError, match=r"has 2 rows for 4 examples"):
        me.step(even)


def continuations(candidates: list[int]) -> Continuations:
    """Examples of so many candidates, of one to three tokens behind prompts of one to six."""
    draw = np.random.default_rng(0)
    counts = [[int(n) for n in draw.integers(1, 4, many)] for many in candidates]
    candidates = [
        [(draw.integers(3, 97, n + draw.integers(1, 7)), n, i == 0) for i, n in enumerate(c)] for c in counts
    ]
    return Continuations.from_candidates(candidates, [""] * len(candidates))


@pytest.mark.parametrize("token_budget", [2048, 24])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_an_example_of_several_candidates_is_clipped_as_one(family, token_budget):
    """Its rows are added up before the bound is put on them, however the loss orders examples; ghost norms are of single rows."""
    batch, loss = continuations([2, 1, 3, 2, 1, 4]), ContinuationLoss(token_budget)
    model = text_classifier.TextScorer(language_model(family, True))
    assert check_step(model, loss, batch, 1.0, "hooks") > 0
    with pytest.raises(
        RuntimeError, match=r"is not a tensor of \d+ rows, one an example: set clipping to hooks"
    ):
        check_step(model, loss, batch, 1.0, "ghost")


@every_way
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_an_answer_of_several_tokens_is_clipped_with_its_prompt(family, clipping):
    """The tied matrix scores every word at each token of the answer."""
    batch = continuations([1] * 6)
    model = text_classifier.TextScorer(language_model(family, True))
    assert check_step(model, ContinuationLoss(2048), batch, 1.0, clipping) > 0


@every_way
@pytest.mark.parametrize("family", FAMILIES)
def test_a_watched_model_computes_what_it_did_to_the_bit(family, clipping, batch):
    """And has its names and classes again afterwards: OPT's positions and Gemma's words look rows up through a plain layer."""
    model = random_models.Answering(language_model(family, True))
    loss, names, kinds = (
        losses.CrossEntropy(2048),
        list(model.state_dict()),
        [type(m) for m in model.modules()],
    )
    expected = loss(model, batch)
    with watching(model, HOOKS[clipping]) as hooks:
        hooks.size = len(batch)
        assert torch.equal(loss(model, batch), expected)
    assert torch.equal(loss(model, batch), expected)
    assert list(model.state_dict()) == names and [type(m) for m in model.modules()] == kinds


def test_ghost_norms_are_refused_where_a_sum_would_be_rounded_to_half_precision(batch):
    """The sum of a batch is rounded as one number, by more than what one example may move it; of single gradients each is clipped."""
    loss = losses.CrossEntropy(2048, compute="bfloat16")
    model = AtOnePosition(language_model("opt", True))
    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16.*: set clipping to hooks"):
        DPSGD(model, loss, budget(0.0), learning_rate=1.0, clip=0.1, clipping="ghost").step(batch)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    one = batch[np.array([6])]
    DPSGD(model, loss, budget(0.0), learning_rate=1.0, clip=0.1).step(one)
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - start).norm() * BATCH_SIZE
    assert moved == pytest.approx(0.1, rel=1e-3)
