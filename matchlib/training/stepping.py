"""One optimiser step: forward, backward, the check that it is finite, update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from matchlib.errors import TrainingError
from matchlib.randomness import address_seed
from matchlib.training.config import StageConfig
from matchlib.training.distributed import rank, world_size
from matchlib.training.loading import LoadedBatch
from matchlib.training.message import new_carrier, pack, unpack
from matchlib.training.schedule import learning_rate_at
from matchlib.training.state import StepOutcome
from matchlib.training.types import TrainableModel, as_module

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_RESERVED = ("gradient_norm", "learning_rate")  # the trainer's own names in a line of history


class Stepper:
    """A model, its optimiser and its loss scale; `step` makes one update.

    A step whose loss or gradient is not finite, on any rank, changes nothing on all: neither weights nor buffers
    (the forward pass may already have spoiled batch statistics, so they are put back).

    Several ranks exchange their gradients and nothing else; losses, counts and wishes to stop travel with these
    (see `message`), and each rank decides by itself from numbers that are the same bits everywhere. They are
    one small vector, the only thing that is read back from the device.
    """

    def __init__(self, model: TrainableModel, config: StageConfig, *, place: torch.device, seed: int) -> None:
        self.module = as_module(model).to(place)
        self.optimiser = build_optimiser(model, config)
        self.scaler = torch.amp.GradScaler(place.type, enabled=config.precision == "float16")
        self._config, self._place, self._seed = config, place, seed
        self._parameters = [
            parameter for group in self.optimiser.param_groups for parameter in group["params"]
        ]
        self._names = {parameter: name for name, parameter in self.module.named_parameters()}
        self._carrier = new_carrier(place) if world_size() > 1 else None
        forward = _TrainingStep(model, self._carrier)
        self._forward: nn.Module = forward if self._carrier is None else _data_parallel(forward, place)
        self._is_settled = self._carrier is None

    def step(self, loaded: LoadedBatch, step: int, *, stop: bool) -> StepOutcome:
        """Make the update after `step` finished ones. `stop`: this process was asked to stop, which all must
        learn.

        Raises TrainingError if the model's losses are not scalars, do not depend on the parameters, or have
        other names on another rank.
        """
        self.module.train()
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        if not self._is_settled:
            self._settle(loaded, step, buffers)
        self._set_learning_rate(step)
        names, message = self._backward(loaded, step, stop=stop)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimiser)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)
        outcome = self._outcome(names, message, norm)
        if outcome.is_finite:
            if self._config.gradient_clip_norm is not None:
                clip_grads_with_norm_(self._parameters, self._config.gradient_clip_norm, norm)
            self.optimiser.step()
        else:
            self._put_back(buffers)
        if self.scaler.is_enabled():
            self.scaler.update()
        self._forward.zero_grad(set_to_none=True)
        return outcome

    def autocast(self) -> torch.autocast:
        """The scope of mixed precision; without effect for float32."""
        precision = self._config.precision
        return torch.autocast(self._place.type, dtype=_DTYPES[precision], enabled=precision != "float32")

    def state_dict(self) -> dict[str, Any]:
        """State of optimiser and loss scale; the weights are the module's own."""
        return {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Back from `state_dict`."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])

    def _set_learning_rate(self, step: int) -> None:
        rate = learning_rate_at(self._config, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _loss(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        with self.autocast():
            losses = {name: loss.float() for name, loss in self._forward(batch).items()}
        minimised = {name: loss for name, loss in losses.items() if not name.startswith("figure/")}
        for name, loss in losses.items():
            if loss.ndim != 0:
                raise TrainingError(
                    f"training_step: '{name}': expected a scalar, got shape {tuple(loss.shape)}"
                )
        wrong = [name for name in losses if name in _RESERVED or (name == "loss" and len(minimised) > 1)]
        if wrong:
            raise TrainingError(
                f"training_step: '{wrong[0]}' is a name of the trainer's own; rename this loss"
            )
        if not any(loss.requires_grad for loss in minimised.values()):
            raise TrainingError(
                f"training_step: the losses ({', '.join(minimised) or 'none'}) depend on no parameter for "
                f"the pairs {', '.join(batch.names)}; a pair without correspondences must give a zero that "
                f"has a gradient, such as `descriptors.sum() * 0`"
            )
        return losses, torch.stack(list(minimised.values())).sum()

    def _settle(self, loaded: LoadedBatch, step: int, buffers: list[Tensor]) -> None:
        """Make gradients once and forget them, before the first update of several ranks.

        After its first backward pass DistributedDataParallel arranges its buckets anew, and how three numbers or
        more are added depends on the arrangement: a resumed run would round its first step in another way than
        the uninterrupted run did.
        """
        self._backward(loaded, step, stop=False)
        self._put_back(buffers)
        self._forward.zero_grad(set_to_none=True)
        self._is_settled = True

    def _put_back(self, buffers: list[Tensor]) -> None:
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _backward(self, loaded: LoadedBatch, step: int, *, stop: bool) -> tuple[tuple[str, ...], Tensor]:
        """Make the gradients, with several ranks their mean.

        Returns the names of the losses and the mean of the messages, (SLOTS,).
        """
        torch.manual_seed(address_seed(self._seed, step, rank(), "torch"))  # for dropout and the like
        losses, total = self._loss(loaded.batch.to(self._place, non_blocking=True))
        message = pack(losses, drawn=loaded.drawn, unreadable=len(loaded.unreadable), stop=stop)
        scaled = self.scaler.scale(total)
        if self._carrier is None:
            torch.autograd.backward([scaled])
        else:
            torch.autograd.backward([scaled, self._carrier.view_as(self._carrier)], [None, message])
            message = cast(Tensor, self._carrier.grad)
        self._check_connected(step)
        return tuple(losses), message

    def _check_connected(self, step: int) -> None:
        """With several ranks each parameter must have a gradient, else some gradients were not averaged. One
        process is held to that at the very first step, where it shows that a layer is not connected."""
        missing = [
            self._names.get(parameter, "?") for parameter in self._parameters if parameter.grad is None
        ]
        if missing and (self._carrier is not None or step == 0):
            raise TrainingError(
                f"training_step: no gradient reaches '{missing[0]}' ({len(missing)} such parameters); use it in "
                f"a loss at every step (a zero such as `x.sum() * 0` will do), or set requires_grad=False"
            )

    def _outcome(self, names: tuple[str, ...], message: Tensor, norm: Tensor) -> StepOutcome:
        *shared, gradient_norm = torch.cat([message, norm.detach().float().reshape(1)]).tolist()
        report = unpack(shared, names, ranks=world_size())
        loss = sum(value for name, value in report.values.items() if not name.startswith("figure/"))
        finite_loss = abs(loss) < float("inf")
        return StepOutcome(
            values=report.values,
            loss=loss,
            gradient_norm=gradient_norm,
            is_overflow=self.scaler.is_enabled() and finite_loss and not abs(gradient_norm) < float("inf"),
            drawn=report.drawn,
            unreadable=report.unreadable,
            stop=report.stop,
        )


class _TrainingStep(nn.Module):
    """Makes `training_step` the forward pass, which DistributedDataParallel wraps."""

    def __init__(self, model: TrainableModel, carrier: nn.Parameter | None) -> None:
        super().__init__()
        self.model = as_module(model)
        self.carrier = carrier

    def forward(self, batch: Any) -> Mapping[str, Tensor]:
        return cast(TrainableModel, self.model).training_step(batch)


def _data_parallel(forward: nn.Module, place: torch.device) -> DistributedDataParallel:
    parallel = DistributedDataParallel(
        forward,
        device_ids=[place] if place.type == "cuda" else None,
        gradient_as_bucket_view=True,  # saves a copy of all gradients per step
        # A graph may differ from step to step (a pair without correspondences), and every parameter is in it.
        static_graph=False,
        find_unused_parameters=False,
    )
    # Each rank keeps its own statistics, see `replicas`. An attribute, since the name of the argument depends on
    # the version of torch, and the older one also keeps buffers from being made equal at the start.
    parallel.broadcast_buffers = False
    return parallel


def build_optimiser(model: TrainableModel, config: StageConfig) -> torch.optim.Optimizer:
    """The optimiser over the model's parameter groups, each with its `weight_decay` and `lr_scale`.

    Raises TrainingError if a trainable parameter is in no group (it would silently stay as it is), a frozen
    one is in a group, or none is trainable.
    """
    groups = [
        {"lr_scale": 1.0, **group, "params": list(group["params"])} for group in model.parameter_groups()
    ]
    names = {parameter: name for name, parameter in as_module(model).named_parameters()}
    grouped = {parameter for group in groups for parameter in group["params"]}
    missing = [
        name for parameter, name in names.items() if parameter.requires_grad and parameter not in grouped
    ]
    frozen = [names.get(parameter, "?") for parameter in grouped if not parameter.requires_grad]
    if missing:
        raise TrainingError(
            f"parameter_groups: '{missing[0]}' is trainable but in no group ({len(missing)} such); "
            f"add it to one or set requires_grad=False"
        )
    if frozen or not grouped:
        found = f"frozen '{frozen[0]}'" if frozen else "none"
        raise TrainingError(f"parameter_groups: expected trainable parameters, got {found}")
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=config.momentum)
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, weight_decay=decay, betas=config.betas)
