"""The arguments of a method's constructor by name, through the classes that it inherits from."""

from __future__ import annotations

from inspect import Parameter, Signature, signature

POSITIONAL, NAMED = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY


def signature_of(cls: type) -> Signature:
    """All arguments of a class, those included that `**settings` pass on to a base class."""
    found: dict[str, Parameter] = {}
    wanted = {POSITIONAL, NAMED}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = list(signature(vars(base)["__init__"]).parameters.values())[1:]
            found |= {p.name: p for p in own if p.kind in wanted and p.name not in found}
            kinds = {p.kind for p in own}
            wanted -= {POSITIONAL} if Parameter.VAR_POSITIONAL not in kinds else set()
            wanted -= {NAMED} if Parameter.VAR_KEYWORD not in kinds else set()
    return Signature(sorted(found.values(), key=lambda p: (p.kind, p.default is not p.empty)))
