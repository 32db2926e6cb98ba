"""Trainable parameters of each choice of `tune`, for an encoder and a causal model."""

from __future__ import annotations

import pytest
import torch

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import text_classifier
from dpzero.language.models.text_classifier import LORA_A, LORA_RANK
from dpzero.plan import settings

HEAD = {"head.weight", "head.bias"}


def trained(name: str, tune: str, task: str = "toy", **how: str) -> dict[str, torch.Size]:
    model = text_classifier.load(name, tasks.load(task), tune, **how)
    return {key: p.shape for key, p in model.named_parameters() if p.requires_grad}


def every(name: str) -> set[str]:
    return {key for key, _ in text_classifier.load(name, tasks.load("toy"), "full").named_parameters()}


def test_a_setting_and_a_command_offer_what_there_is():
    assert settings.TUNES == text_classifier.TUNES


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_full_trains_all_parameters_and_head_the_head(name):
    assert set(trained(name, "full")) == every(name)
    assert set(trained(name, "head")) == HEAD


def test_bias_tuning_of_bert_trains_every_bias():
    biases = {key for key in every("tiny-encoder") if key.endswith("bias")}
    assert set(trained("tiny-encoder", "bias")) == biases | HEAD and len(biases) > 10


def test_bias_tuning_of_llama_trains_the_gains_of_its_norms():
    chosen = set(trained("tiny-causal", "bias")) - HEAD
    assert all("norm" in key and key.endswith("weight") for key in chosen)
    assert len(chosen) == 2 * 2 + 1  # two in each of two layers, and the last


@pytest.mark.parametrize(
    "name, targets", [("tiny-encoder", ("query", "value")), ("tiny-causal", ("q_proj", "v_proj"))]
)
def test_lora_adds_rank_8_to_query_and_value(name, targets):
    adapters = {key: shape for key, shape in trained(name, "lora").items() if key not in HEAD}
    assert len(adapters) == 2 * 2 * 2  # layers, targets, factors
    assert all(
        f".{key.split('.lora_')[0].rsplit('.', 1)[1]}" in [f".{t}" for t in targets] for key in adapters
    )
    assert all(min(shape) == LORA_RANK == 8 for shape in adapters.values())


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_lora_with_a_frozen_a_trains_the_rest_and_starts_from_the_same_draw(name):
    """FFA-LoRA: A is not 0, so that B learns."""
    both, last = trained(name, "lora"), trained(name, "lora", lora_a="frozen")
    assert (
        both.keys() - last.keys() == {key for key in both if ".lora_A." in key} and last.keys() < both.keys()
    )
    start, frozen = (
        {key: p for key, p in model.named_parameters() if ".lora_A." in key}
        for model in (text_classifier.load(name, tasks.load("toy"), "lora", lora_a=a) for a in LORA_A)
    )
    assert all(torch.equal(start[key], frozen[key]) and start[key].any() for key in start)


@pytest.mark.parametrize("tune", ["lora", "prefix", "side", "reversible"])
def test_with_adapters_only_a_new_head_is_trained(tune):
    """As in MeZO's code, which trains nothing without `lora` or `prefix` in its name."""
    assert trained("tiny-encoder", tune).keys() >= HEAD
    assert not trained("tiny-causal", tune).keys() & HEAD
    assert not trained("tiny-masked", tune, "trec").keys() & HEAD


def test_an_unknown_choice_is_refused():
    with pytest.raises(
        UsageError, match="tune is 'some': give one of full, bias, lora, prefix, side, reversible, head"
    ):
        text_classifier.load("tiny-encoder", tasks.load("toy"), "some")


# --- prefix


@pytest.mark.parametrize(
    "name, task", [("tiny-encoder", "toy"), ("tiny-causal", "toy"), ("tiny-masked", "trec")]
)
def test_a_prefix_is_five_keys_and_values_in_every_layer(name, task):
    model = text_classifier.load(name, tasks.load(task), "prefix")
    shapes = {key: p.shape for key, p in model.named_parameters() if p.requires_grad and key not in HEAD}
    assert len(shapes) == 2 and all("prefix" in key for key in shapes)
    assert set(shapes.values()) == {torch.Size([5, 2 * 32])}


@torch.no_grad()
def test_a_prefix_starts_as_the_keys_and_values_of_random_tokens_before_the_text():
    """In a causal model the prefix equals these tokens before the text, whose positions are not shifted."""
    model, plain = (
        text_classifier.load("tiny-causal", tasks.load("toy"), tune, seed=4) for tune in ("prefix", "head")
    )
    random = torch.randint(1024, (1, 5), generator=torch.Generator().manual_seed(4))
    text = torch.tensor([[1, 20, 30, 40, 50, 60]])
    positions = torch.cat([torch.arange(5), torch.arange(6)])[None]
    both = torch.cat([random, text], 1)
    hidden = plain.backbone(input_ids=both, attention_mask=torch.ones_like(both), position_ids=positions)
    feature = model.features(text, torch.ones_like(text))
    torch.testing.assert_close(feature, hidden.last_hidden_state[:, -1], atol=2e-6, rtol=0)
    assert not torch.allclose(feature, plain.features(text, torch.ones_like(text)), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, task", [("tiny-encoder", "toy"), ("tiny-causal", "toy"), ("tiny-masked", "trec")]
)
def test_with_a_prefix_texts_do_not_affect_each_other(name, task):
    model = text_classifier.load(name, tasks.load(task), "prefix")
    ids = torch.tensor([[1, 2, 30, 40, 50, 60], [1, 2, 70, 0, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    alone = model(ids[1:, :3], mask[1:, :3])
    torch.testing.assert_close(model(ids, mask)[1:], alone, atol=3e-6, rtol=0)


@torch.no_grad()
def test_a_model_with_a_prefix_generates_what_it_scores():
    """Also with the cache of earlier tokens, every new token attends to the prefix once."""
    model = text_classifier.load("tiny-causal", tasks.load("squad"), "prefix")
    ids = torch.tensor([[1, 20, 30, 40]])
    written = model.language_model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, pad_token_id=0)  # fmt: skip
    for end in range(4, written.shape[1]):
        read = written[:, :end]
        logits = model(read, torch.ones_like(read), torch.tensor([[end - 1]]))
        assert logits.argmax() == written[0, end]


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_the_gradient_of_a_prefix_is_clipped_for_each_example(clipping):
    from baselines.dp_sgd import DPSGD
    from dpzero.language.models.encoding import Examples
    from dpzero.language.models.losses import CrossEntropy
    from dpzero.privacy import Setting, StandInBudget

    texts = Examples.from_token_ids([[1, 20, 30], [1, 40, 50, 60, 70], [1, 80]], [0, 1, 2])
    setting = Setting("gaussian", "poisson", "add_remove", 10, 3, 5, 1e-5)
    clip, moved = 1e-3, []
    for examples in (texts[[0]], texts[[1]], texts[[2]], texts):
        model = text_classifier.load("tiny-causal", tasks.load("toy"), "prefix")
        start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        budget = StandInBudget(setting, 1e-9)
        DPSGD(model, CrossEntropy(512), budget, learning_rate=1.0, clip=clip, clipping=clipping).step(
            examples
        )
        after = [p for p in model.parameters() if p.requires_grad]
        moved.append(
            torch.cat([(b - a).flatten().double() for a, b in zip(start, after, strict=True)]).detach()
        )
    for one in moved[:3]:
        assert one.norm().item() == pytest.approx(clip / 3, rel=0.02)  # float32 weights round what moves them
    torch.testing.assert_close(sum(moved[:3]), moved[3], atol=2e-7, rtol=0)
