"""DP-SGD and DP-Adam (Abadi et al., 2016, arXiv 1607.00133): clip every example's gradient, add noise to the sum.

Opacus supplies only the per-sample gradients, or with ghost clipping (Li et al., 2022, arXiv 2110.05679)
their norms; for book-keeping (Bu et al., 2023, arXiv 2210.00038) see `_book_keeping`. Sampler, clip, noise and
accountant are those of the zeroth-order methods. Adam's moments are computed from the noisy sums.

Automatic clipping follows Bu et al. (2023, arXiv 2206.07136) and their code, fastDP: AUTO-S times clip, which is
AUTO-V where `stability` is 0. Per-layer clipping follows He et al. (2023, arXiv 2212.01539) with constant, equal
clips, which in their paper tend to do worse than one clip. Their adaptive clips, which are releases of their own,
are not built. FlashDP (arXiv 2507.01154) fuses per-layer norms and sums into one GPU kernel: the same sums, with
claims of speed that only a GPU can show. Its code was not read.
"""

# Opacus keeps its results as attributes of parameters:
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from baselines._book_keeping import BookKeeping, Group, Sums
from baselines._per_sample_gradients import GhostNorms, PerSampleGradients, watching
from baselines.fine_tuning import FineTuning
from dpzero.privacy import Budget, check_clip
from dpzero.privacy.clipping import automatic_factors, clip_factors
from dpzero.zeroth_order import batches
from dpzero.zeroth_order.loss_checks import check_independence
from dpzero.zeroth_order.model_requirements import ModelCheck, check_normalisation
from dpzero.zeroth_order.protocols import PartitionedLoss

HOOKS = {"hooks": PerSampleGradients, "ghost": GhostNorms, "book_keeping": BookKeeping}
CLIP_RULES = ("flat", "automatic", "per_layer")


class DPSGD(FineTuning):
    """`clip` bounds the Euclidean norm of one example's clipped gradient over all trained parameters together.

    `clip_rule` says what a clipped gradient is. `flat`: the gradient times min(1, clip / norm). `automatic`: times
    clip / (norm + stability). `per_layer`: each of L layers (modules with trained parameters of their own; a shared
    parameter belongs to the first) is clipped to clip / sqrt(L), so that the whole has a norm of at most clip.

    `clipping` says how it is computed, for the same released sum. `hooks` keeps every example's gradient in
    memory and scales it. `ghost` keeps only the norms; a second backward pass sums the gradients of the losses,
    each times its clip factor, which must be the same for all layers. `book_keeping` keeps the layers' inputs and
    the gradients of their outputs, which give norms and sums after one backward pass; per layer during it.

    If the budget's unit is the user, `clip` bounds the gradient of the mean loss over one user's examples
    (user-wise DP-SGD of Chua et al. 2024, arXiv 2406.14322), by a pass for each user whatever `clipping` says.

    With `dropout` an example's gradient has a mask of its own. Masks are independent of the data and of each
    other, so the sum has the same sensitivity given any masks. But two neighbouring batches draw other masks
    from the same state of a generator: the guarantee needs masks that nobody can compute, and a run under a
    secret key is refused.
    """

    title = "DP-SGD"
    private = True
    order = 1

    def __init__(
        self,
        model: nn.Module,
        loss: PartitionedLoss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        optimizer: Literal["adamw", "adam", "sgd"] = "sgd",
        clipping: Literal["hooks", "ghost", "book_keeping"] = "hooks",
        clip_rule: Literal["flat", "automatic", "per_layer"] = "flat",
        stability: float = 0.01,
        dropout: bool = False,
        seed: int = 0,
    ) -> None:
        size = Budget.require(budget).batch_size
        super().__init__(
            model, loss, size, learning_rate=learning_rate, optimizer=optimizer, dropout=dropout, seed=seed
        )
        if dropout and budget.key.valid_release:
            raise ValueError(
                "dropout draws masks that whoever knows the seed can compute, and one example more changes those of the "
                "others: leave it out, or publish the noise key"
            )
        check_clip(clip)
        if clipping not in HOOKS:
            raise ValueError(f"clipping is {clipping!r}: give one of {', '.join(HOOKS)}")
        if clip_rule not in CLIP_RULES:
            raise ValueError(f"clip_rule is {clip_rule!r}: give one of {', '.join(CLIP_RULES)}")
        if clip_rule == "per_layer" and clipping == "ghost":
            raise ValueError(
                "the second backward pass of ghost clipping has one factor for all layers of an example: with clip_rule "
                "per_layer set clipping to book_keeping or hooks"
            )
        if not 0.0 <= stability < math.inf:
            raise ValueError(
                f"stability is {stability}: give 0 or a positive number, in units of the gradient"
            )
        budget.check_gradients(unit=budget.unit)
        self.budget, self.clip, self.clipping = budget, clip, clipping
        self.clip_rule, self.stability = clip_rule, stability
        self._users: np.ndarray | None = None  # of the step's examples, as numbers, if the unit is the user
        ghost = clipping == "ghost" and budget.unit != "user"
        self.forwards_per_example = 5 if ghost else 3  # ghost: a second backward pass
        # batch -> the example that each of the model's rows belongs to
        self.owners: Any = getattr(loss, "owners", None)
        trained: Group = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = list(trained)
        self.groups = layers(trained) if clip_rule == "per_layer" else [trained]
        check_normalisation(model.named_modules())
        model.eval()  # no dropout, but where `drop_out` has it
        self.model_check, self._independent = ModelCheck(model, self.parameters), False
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                # it divides by how often the batch, not the example, has a token
                module.scale_grad_by_freq = False

    def step(self, batch: Any, users: ArrayLike | None = None) -> None:
        """Takes a step. `users`: if the unit is the user, the user of each example, integers or strings [B]."""
        if (users is None) == (self.budget.unit == "user"):
            raise ValueError(
                f"the unit is the {self.budget.unit}: give `users` if it is the user, and only then"
            )
        self._users = None if users is None else batches.number_users(users, batches.sizes(batch))
        try:
            super().step(batch)
        except BaseException:
            for p in self.parameters:  # these gradients have no noise
                p.grad = None
                p.__dict__.pop("grad_sample", None)
            raise
        if self.budget.key.valid_release:
            self.training_loss = None  # it has no noise

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"budget": self.budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.budget.load_state_dict(state["budget"])
        super().load_state_dict(state)

    def check_loss(self, batch: Any) -> None:
        """Checks on public examples that no loss depends on other examples: see `PrivateTwoPoint`."""
        self._check_independence(batch, max(batches.sizes(batch)), None)

    def _check_independence(self, batch: Any, count: int, collate: batches.Take | None) -> None:
        pick = collate or partial(batches.take, batch, size=count)
        moved = check_independence(partial(self.loss, self.model), batch, count, pick)
        self._independent = moved is not None

    def gradients(self, batch: Any) -> Tensor | float:
        self.model_check.check()
        if self._users is None:
            count = self.budget.admit(batches.sizes(batch), batches.indices(batch))
        else:
            count = len(self._users)
            self.budget.admit({len(np.unique(self._users))})
        if self.budget.probes_loss and not self._independent:
            self._check_independence(batch, count, self.budget.collate_subset)
        with self.model_check.deterministic(), self.model_check.forward_passes(), self.drop_out(batch):
            sums, total = self._clipped_sums(batch)
        self._release(sums)
        return total

    def _release(self, sums: Sums) -> None:
        """Leaves the noisy gradient of each parameter in `grad`."""
        for p in self.parameters:
            p.grad = sums[p] if p in sums else torch.zeros_like(p)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._users is None:
            self.budget.release_(gradients, self.clip)
        else:
            self.budget.release_(gradients, self.clip, unit="user")
        for gradient in gradients:
            gradient.div_(self.batch_size)

    def _clipped_sums(self, batch: Any) -> tuple[Sums, Tensor | float]:
        """The sums of clipped gradients, and the sum of the losses."""
        if self._users is not None:
            return self._clipped_sums_of_users(batch, self._users)
        sums: Sums = {}
        ways = {"hooks": self._add_clipped, "ghost": self._add_ghost, "book_keeping": self._add_booked}
        add: Any = ways[self.clipping]
        with watching(self.model, HOOKS[self.clipping]) as hooks:
            total = sum(add(hooks, sums, part) for part in self.loss.parts(batch))
        return sums, total

    def _clipped_sums_of_users(self, batch: Any, users: np.ndarray) -> tuple[Sums, Tensor | float]:
        """The same, each summand the clipped gradient of the mean loss over a user's examples: a pass for each user."""
        sums: Sums = {p: torch.zeros_like(p) for p in self.parameters}
        total: Tensor | float = 0.0
        for user in np.unique(users):
            rows = np.flatnonzero(users == user)
            for part in self.loss.parts(batches.take(batch, rows, len(users))):
                losses = self.loss(self.model, part)
                (losses.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
                total += losses.detach().sum()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            gradient_of = dict(zip(self.parameters, gradients, strict=True))
            for group in self.groups:
                of_group = {p: gradient_of[p] for p in group.values()}
                squared = sum(torch.linalg.vector_norm(g).double().square() for g in of_group.values())
                factor = self._factors(torch.as_tensor(squared))
                for p, gradient in of_group.items():
                    # a gradient that is not finite has factor 0, but 0 * inf is not a number
                    sums[p].add_(gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0) * factor.to(gradient))
                    p.grad = None
        return sums, total

    def _add_clipped(self, hooks: PerSampleGradients, sums: Sums, part: Any) -> Tensor:
        """Adds the clipped gradients of a micro-batch. Returns the sum of its losses."""
        losses = self._losses(hooks, part)
        losses.sum().backward(inputs=[*hooks.needed])  # type: ignore[no-untyped-call]
        if hooks.size != len(part):
            owners = torch.from_numpy(self.owners(part)).to(losses.device)
            for p in self.parameters:
                folded = p.new_zeros(len(part), *p.shape)
                p.grad_sample = folded.index_add_(0, owners, p.grad_sample)
        for group in self.groups:
            factors = self._factors(self._squared_norms("grad_sample", losses, group))
            for p in group.values():
                # a gradient that is not finite has factor 0, but 0 * inf is not a number
                gradients = p.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
                clipped = torch.tensordot(factors.to(gradients), gradients, dims=1)
                sums[p] = sums[p].add_(clipped) if p in sums else clipped
                p.grad_sample = gradients = None
        return losses.detach().sum()

    def _add_booked(self, hooks: BookKeeping, sums: Sums, part: Any) -> Tensor:
        """The same, from layers' inputs and the gradients of their outputs."""
        losses = self._losses(hooks, part)
        if hooks.size != len(part):
            raise RuntimeError(
                f"{len(part)} examples are {hooks.size} rows of the model, which book-keeping clips one by one: set clipping "
                "to hooks"
            )
        hooks.begin(self.groups, self._factors, sums)
        losses.sum().backward(inputs=[*hooks.needed])  # type: ignore[no-untyped-call]
        for p in self.parameters:
            p.grad = None  # it belongs to the whole batch
        if missing := hooks.missing():
            raise RuntimeError(
                f"a backward pass left no gradients of {len(part)} examples in {missing[0]}: freeze layers whose output is "
                "not used"
            )
        return losses.detach().sum()

    def _add_ghost(self, hooks: GhostNorms, sums: Sums, part: Any) -> Tensor:
        """The same, without keeping the gradients of single examples."""
        losses = self._losses(hooks, part)
        output, hooks.output = hooks.output, None
        if not isinstance(output, Tensor) or len(output) != len(part):
            raise RuntimeError(
                f"the model's output is not a tensor of {len(part)} rows, one an example: set clipping to hooks"
            )
        if graph_uses(losses, output):
            raise RuntimeError("a loss is more than a function of the model's output: set clipping to hooks")
        losses.sum().backward(inputs=[*hooks.needed], retain_graph=True)  # type: ignore[no-untyped-call]
        squared = self._squared_norms("_norm_sample", losses, *self.groups)
        finite = squared.isfinite()
        if finite.all():
            # norms are in the order of the model's rows, which need not be that of the losses: so weigh the rows
            factors = self._factors(squared).to(output).view(-1, *[1] * (output.dim() - 1))
            hooks.disable_hooks()
            weights = factors * output.grad  # type: ignore[operator]
            gradients = torch.autograd.grad(output, self.parameters, weights)
            hooks.enable_hooks()
            for p, clipped in zip(self.parameters, gradients, strict=True):
                sums[p] = sums[p].add_(clipped) if p in sums else clipped
        elif finite.any():
            # a gradient that is not finite has factor 0, but 0 * inf is not a number: halve until it is alone
            for half in np.array_split(np.arange(len(part)), 2):
                self._add_ghost(hooks, sums, part[half])
        return losses.detach().sum()

    def _factors(self, squared: Tensor) -> Tensor:
        """Clip factors [B] of a group's gradients, from their squared norms; all groups together have the bound `clip`."""
        if self.clip_rule == "automatic":
            return automatic_factors(squared, self.clip, self.stability)
        return clip_factors(squared, self.clip / math.sqrt(len(self.groups)))

    def _squared_norms(self, kept: str, losses: Tensor, group: Group) -> Tensor:
        """Squared norm of each example's gradient over a group of parameters, float64 [B].

        Args:
            kept: the attribute in which a backward pass left each parameter's gradients or norms.
        """
        squared = torch.zeros(len(losses), dtype=torch.float64, device=losses.device)
        for name, p in group.items():
            values, p.grad = getattr(p, kept, None), None  # `grad` belongs to the whole batch
            if values is None or len(values) != len(losses):
                raise RuntimeError(
                    f"a backward pass left no {kept} of {len(losses)} examples in {name}: freeze layers whose output "
                    "is not used"
                )
            squared += torch.linalg.vector_norm(values.reshape(len(values), -1), dim=1).double().square()
        return squared

    def watched(self) -> Group:
        """The parameters whose gradients are clipped by hooks, by name."""
        return dict(zip(self.names, self.parameters, strict=True))

    def _losses(self, hooks: PerSampleGradients, part: Any) -> Tensor:
        """The losses of a micro-batch. Raises RuntimeError if Opacus missed a use of a parameter."""
        hooks.size = len(self.owners(part)) if self.owners else len(part)
        hooks.uses.clear()
        hooks.needed.clear()
        losses = self.loss(self.model, part)
        uses = graph_uses(losses)
        for name, p in self.watched().items():
            used, seen = uses[id(p)], len(hooks.uses[p])
            vars(p)["_norm_sample"] = None  # of the previous micro-batch
            if used != seen or not seen:
                raise RuntimeError(
                    f"{name} is used {used} times in a forward pass, {seen} of them by its layer, so that its gradient would "
                    "not be clipped as a whole: freeze it, or use it through its layer alone"
                )
            if isinstance(hooks, GhostNorms) and not hooks.covers(p):
                raise RuntimeError(
                    f"{name} is used {seen} times in a forward pass, but its ghost norm is known for one use: set clipping to "
                    "hooks"
                )
        return losses


def layers(trained: Group) -> list[Group]:
    """The parameters of each module together."""
    groups: dict[str, Group] = {}
    for name, p in trained.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = p
    return list(groups.values())


def graph_uses(result: Tensor, below: Tensor | None = None) -> Counter[int]:
    """How many operations of the graph behind `result`, without those behind `below`, read each trained parameter.

    Returns:
        id of a parameter -> number of operations.
    """
    uses: Counter[int] = Counter()
    known: set[Any] = {None} if below is None else {None, below.grad_fn}
    rest: list[Any] = [result.grad_fn] if result.grad_fn not in known else []
    while rest:
        for node, _ in rest.pop().next_functions:
            if hasattr(node, "variable"):
                uses[id(node.variable)] += 1
            elif node not in known:
                known.add(node)
                rest.append(node)
    return uses
