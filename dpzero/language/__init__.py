"""Models, tasks, prompts, few-shot splits, tokenized examples, per-example losses and metrics."""


def __getattr__(name: str):
    if name != "few_shot_split":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from .data.few_shot import few_shot_split  # needs numpy, which planning does without

    return few_shot_split
