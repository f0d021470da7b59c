"""One rank's model, optimizer and gradients behind a small interface, with DeepSpeed inside or without it.

A step is the same calls on every rank, with equally many microbatches:

    engine.begin_step(microbatches=2)
    for features, targets, weights in microbatches:            # a rank that has no rows left gives weights of zero
        loss, _ = engine.forward(**features, head=partial(linear_cross_entropy, targets=targets, weights=weights))
        engine.backward(loss / number)                         # one number for the whole global batch
    gradient_norm = engine.step(learning_rate)

The gradient applied is the sum of the gradients of all losses given to `backward`, over microbatches and ranks:
nothing is averaged, and nothing is clipped unless asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import socket
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixtura.platform.errors import CheckpointError, ConfigError, TrainingError
from mixtura.platform.training.deepspeed_settings import deepspeed_settings, effective_stage
from mixtura.platform.training.layout import Layout, StateOfParameters, cut, piece, whole_layout
from mixtura.platform.training.optimizer import OptimizerSettings, PartitionedOptimizer, create_optimizer
from mixtura.platform.training.snapshot import Fragment, FragmentState, HostCopies, Snapshot

_LOG = logging.getLogger(__name__)

_WEIGHTS_DIVIDED = 3
"""The ZeRO stage from which on a rank has only its part of the weights."""


class Engine(ABC):
    """What the training loop talks to. `effective_stage` is the ZeRO stage that runs; `notes` say what differs."""

    effective_stage: int = 0
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        module: nn.Module,
        optimizer: PartitionedOptimizer,
        layout: Layout,
        device: torch.device,
        frozen: dict[str, Tensor],
    ) -> None:
        self.module = module
        self.device = device
        self._optimizer = optimizer
        self._layout = layout
        self._frozen = frozen
        self._names = {name for name, _ in module.named_parameters()}
        self._expected_microbatches = 0
        self._done_microbatches = 0
        optimizer.bind(layout)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def begin_step(self, microbatches: int) -> None:
        """Say how many times forward and backward follow before `step`; the same number on every rank, at least 1."""
        if microbatches < 1:
            raise TrainingError(f"a step of {microbatches} microbatches: a rank without rows runs one of weight zero")
        self._expected_microbatches, self._done_microbatches = microbatches, 0

    @abstractmethod
    def forward(self, **features: Any) -> Any:
        """What the model returns for a microbatch."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss that is already divided by the global number."""
        if self._done_microbatches >= self._expected_microbatches:
            raise TrainingError(f"more microbatches than the {self._expected_microbatches} that begin_step announced")
        self._done_microbatches += 1
        self._backward(loss)

    @abstractmethod
    def _backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float, frozen: frozenset[str] = frozenset()) -> float:
        """Update the weights; returns the norm of the whole gradient before clipping.

        Parameters named in `frozen` get no update, and nothing of the optimizer that is theirs changes; the norm, and
        clipping by it, are of the others. Raises TrainingError if the gradient is not finite; weights and optimizer
        are then as they were before.
        """
        if self._done_microbatches != self._expected_microbatches or not self._expected_microbatches:
            raise TrainingError(
                f"step after {self._done_microbatches} of {self._expected_microbatches} announced microbatches"
            )
        self._expected_microbatches = self._done_microbatches = 0
        optimizer = self._optimizer
        if frozen != optimizer.frozen and (unknown := frozen.difference(self._names)):
            raise TrainingError(f"{min(unknown)!r} is to be frozen in this step, but the model has no such parameter")
        optimizer.frozen, optimizer.gradient_norm = frozen, math.nan
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        self._step()
        if not math.isfinite(optimizer.gradient_norm):
            raise TrainingError(
                f"the gradient of update {self.optimizer_step} is not finite, so it was not applied: "
                "lower the learning rate, or look at the rows of this step"
            )
        return optimizer.gradient_norm

    @abstractmethod
    def _step(self) -> None:
        """Have the optimizer make its step, give its weights to the model, and forget the gradients."""

    @property
    def optimizer_step(self) -> int:
        """Updates done, over all attempts of the run."""
        return self._optimizer.update_count

    @property
    def optimizer_bytes(self) -> int:
        """Bytes that this rank keeps for the optimizer from step to step, beside the fp32 weights."""
        return self._optimizer.state_bytes

    def close(self) -> None:
        """Let go of the model."""
        self.module.zero_grad(set_to_none=True)

    # ---- state -------------------------------------------------------------------------------------------------------

    def partition(self) -> list[Fragment]:
        """Which pieces of the trained parameters this rank updates."""
        return self._layout.local()

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        """This rank's fp32 weights and optimizer state, copied to host memory; that of `reuse` is taken again.

        Rank 0 alone gives frozen parameters and what is equal on all ranks, which at stage 0 is everything.
        """
        first = self._rank == 0
        if not first and self.effective_stage == 0:
            return Snapshot([], {}, self.optimizer_step)
        host = HostCopies(reuse)
        fragments, replicated = self._fragment_states(host), {}
        if first:
            for name, value in self._frozen.items():
                fragments.append(FragmentState(name, tuple(value.shape), 0, {"master": value.flatten()}))
            replicated = {
                name: host.copy(name, "", tensor) for name, tensor in self._optimizer.replicated_state().items()
            }
        host.wait()
        return Snapshot(fragments, replicated, self.optimizer_step)

    def _fragment_states(self, host: HostCopies) -> list[FragmentState]:
        per_element = self._optimizer.local_state()
        states = []
        for holder, fragment in self._layout:
            if fragment.length:
                tensors = {"master": piece(holder, fragment), **per_element.get(fragment.name, {})}
                copies = {key: host.copy(fragment.name, key, tensor) for key, tensor in tensors.items()}
                states.append(FragmentState(fragment.name, fragment.shape, fragment.start, copies))
        return states

    def restore(
        self, weights: Mapping[str, Tensor], optimizer_state: StateOfParameters | None = None, optimizer_step: int = 0
    ) -> None:
        """Take whole fp32 weights and the optimizer's state, written at any stage and world size.

        Without a state the optimizer begins anew at update 0. Every rank calls it with the same values; `weights` may
        be lazy, each name is looked up once.
        """
        self._take_weights(weights)
        if optimizer_state is None:
            self._optimizer.bind(self._layout)
        else:
            self._optimizer.load_state(optimizer_state, optimizer_step)

    @torch.no_grad()
    def _take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the model's weights in its own precision and the optimizer's in fp32."""
        local = {fragment.name: (holder, fragment) for holder, fragment in self._layout if fragment.length}
        for name, parameter in self.module.named_parameters():
            if name not in weights:
                raise CheckpointError(f"parameter {name!r} is not in the checkpoint: it is of another model")
            whole, shape = weights[name], tuple(getattr(parameter, "ds_shape", parameter.shape))
            if tuple(whole.shape) != shape:
                raise CheckpointError(
                    f"parameter {name!r} has shape {tuple(whole.shape)} in the checkpoint, but "
                    f"{shape} here: it is of another model"
                )
            self._set_parameter(parameter, whole)
            if name in local:
                holder, fragment = local[name]
                piece(holder, fragment).copy_(cut(whole, fragment))
            if name in self._frozen:
                self._frozen[name] = _host_copy(whole)

    def _set_parameter(self, parameter: nn.Parameter, whole: Tensor) -> None:
        parameter.data.copy_(whole)

    @property
    def _rank(self) -> int:
        return 0


class PlainEngine(Engine):
    """The same interface in one process and without DeepSpeed: the reference, and the one to debug with."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerSettings | None = None,
        precision: str = "fp32",
        device: torch.device | None = None,
    ) -> None:
        settings = optimizer or OptimizerSettings()
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        effective_stage(1, precision)
        model.to(device)
        frozen = _frozen_weights(model)
        self._parameters = _trained(model)
        self._masters = dict(self._parameters)
        if precision == "bf16":
            self._masters = {
                name: nn.Parameter(value.detach().float().clone()) for name, value in self._parameters.items()
            }
            model.to(torch.bfloat16)
        inner = create_optimizer(settings, self._masters.values())
        super().__init__(model, inner, whole_layout(self._masters.items()), device, frozen)

    def forward(self, **features: Any) -> Any:
        """What the model returns for a microbatch."""
        return self.module(**features)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            if master is not parameter and parameter.grad is not None:
                master.grad.add_(parameter.grad)
                parameter.grad = None

    @torch.no_grad()
    def _step(self) -> None:
        self._optimizer.step()
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is not parameter:
                parameter.copy_(master)
            master.grad = None


class DeepSpeedEngine(Engine):
    """A rank of DeepSpeed's data parallelism at a ZeRO stage; made by `create_engine`."""

    def __init__(
        self,
        deepspeed_engine: Any,
        *,
        optimizer: PartitionedOptimizer,
        layout: Layout,
        frozen: dict[str, Tensor],
        stage: int,
        notes: tuple[str, ...],
        functional_linear: Callable[..., Tensor],
    ) -> None:
        super().__init__(deepspeed_engine.module, optimizer, layout, deepspeed_engine.device, frozen)
        self._deepspeed = deepspeed_engine
        self._functional_linear = functional_linear
        self.effective_stage = stage
        self.notes = notes

    def forward(self, **features: Any) -> Any:
        """What the model returns for a microbatch."""
        return self._deepspeed(**features)

    def _backward(self, loss: Tensor) -> None:
        self._deepspeed.set_gradient_accumulation_boundary(self._done_microbatches == self._expected_microbatches)
        # DeepSpeed can only average over ranks at stage 3.
        ranks = dist.get_world_size() if self.effective_stage == _WEIGHTS_DIVIDED else 1
        self._deepspeed.backward(loss if ranks == 1 else loss * ranks, scale_wrt_gas=False)

    def _step(self) -> None:
        self._deepspeed.step()

    def _set_parameter(self, parameter: nn.Parameter, whole: Tensor) -> None:
        if self.effective_stage < _WEIGHTS_DIVIDED:
            parameter.data.copy_(whole)
            return
        divided: Any = parameter
        start, length = _part_of(divided)
        divided.ds_tensor.view(-1)[:length].copy_(whole.reshape(-1)[start : start + length])
        if parameter.numel() == whole.numel():  # a small one, which is on every rank at all times
            parameter.data.copy_(whole)

    def close(self) -> None:
        """Let go of the model, and take DeepSpeed's hooks off it."""
        super().close()
        with _stdout_to_log():
            self._deepspeed.destroy()
        nn.functional.linear = self._functional_linear

    @property
    def _rank(self) -> int:
        return dist.get_rank()


# ---- making a DeepSpeed engine ---------------------------------------------------------------------------------------


def create_engine(
    model: nn.Module,
    *,
    optimizer: OptimizerSettings | None = None,
    zero_stage: int = 1,
    precision: str = "fp32",
    passthrough: Mapping[str, Any] | None = None,
) -> DeepSpeedEngine:
    """This rank's engine in the default process group, which must exist (`initialize_distributed_single_process`).

    Every rank begins with rank 0's weights. Weights are kept in fp32 by the optimizer also where the model computes in
    bf16. `passthrough` has other DeepSpeed settings.
    """
    settings = optimizer or OptimizerSettings()
    what = effective_stage(zero_stage, precision)
    configuration = deepspeed_settings(
        what,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        passthrough=passthrough,
    )
    device = _own_device()
    if what.stage < _WEIGHTS_DIVIDED:
        model.to(device)
    _share_first_weights(model, device)
    trained = _trained(model)
    frozen = _frozen_weights(model) if dist.get_rank() == 0 else {}
    # DeepSpeed would make the fp32 weights from the model's after casting it to bf16.
    weights = {name: _host_copy(value) for name, value in model.named_parameters()} if precision == "bf16" else None
    inner = create_optimizer(settings, trained.values())
    functional_linear = nn.functional.linear  # stage 3 puts one in its place that does not keep the weight
    deepspeed = _import_deepspeed()
    with _stdout_to_log():
        if what.stage == _WEIGHTS_DIVIDED:
            _divide(deepspeed, model, device, precision, configuration)
        engine, *_ = deepspeed.initialize(model=model, optimizer=inner, dist_init_required=False, config=configuration)
    layout = whole_layout(trained.items()) if what.stage == 0 else _partition_map(engine, trained, inner)
    result = DeepSpeedEngine(
        engine,
        optimizer=inner,
        layout=layout,
        frozen=frozen,
        stage=what.stage,
        notes=(what.note,) if what.note else (),
        functional_linear=functional_linear,
    )
    _check_partition_map(deepspeed, layout, trained)
    if weights is not None:
        result._take_weights(weights)
    return result


def initialize_distributed_single_process() -> None:
    """Make a default process group of this process alone, if there is none; it listens on loopback only."""
    if dist.is_initialized():
        return
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)


def _own_device() -> torch.device:
    if not dist.is_initialized():
        raise TrainingError(
            "no process group: Ray Train makes one; in a single process call initialize_distributed_single_process()"
        )
    return torch.device("cuda", torch.cuda.current_device()) if _on_gpu() else torch.device("cpu")


def _share_first_weights(model: nn.Module, device: torch.device) -> None:
    """Give rank 0's weights to all, one after the other through `device`."""
    if dist.get_world_size() == 1:
        return
    for parameter in model.parameters():
        there = parameter.data.to(device)
        dist.broadcast(there, src=0)
        parameter.data.copy_(there)


def _divide(
    deepspeed: Any, model: nn.Module, device: torch.device, precision: str, configuration: Mapping[str, Any]
) -> None:
    """Move each rank's part of the weights to its device, one parameter after the other: together they may not fit."""
    if precision == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    deepspeed.zero.Init(module=model, config_dict_or_path=dict(configuration))


def _on_gpu() -> bool:
    return torch.cuda.is_available() and "nccl" in dist.get_backend_config()


def _import_deepspeed() -> Any:
    """DeepSpeed, told which device to use before it looks for one itself, and silent below errors."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _on_gpu() else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(torch.cuda.current_device() if _on_gpu() else 0))
    with _stdout_to_log(), _compilers_to_log(), _without("mlflow"):
        import deepspeed

    # Otherwise every first start compiles it for a minute, although only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f".*{name}.*deprecated", category=FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:  # its own; others may have added theirs
            logger.removeHandler(handler)
            # It looks standard error up at each message: what it was at import may be closed by then.
            logger.addHandler(logging.lastResort or handler)
    return deepspeed


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """A module cannot be imported: DeepSpeed's tuner, which is not used here, would load all of MLflow in every rank,
    as much as DeepSpeed itself takes."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _stdout_to_log() -> Iterator[None]:
    """DeepSpeed prints; standard output belongs to what a command answers."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        if printed.getvalue():
            _LOG.debug("%s", printed.getvalue())


@contextlib.contextmanager
def _compilers_to_log() -> Iterator[None]:
    """DeepSpeed tries at import what it could compile; what compilers and linkers say of that is no error of ours."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            _LOG.debug("%s", said.read().decode(errors="replace"))


def _partition_map(engine: Any, trained: Mapping[str, nn.Parameter], optimizer: PartitionedOptimizer) -> Layout:
    """Where DeepSpeed has put the pieces of every parameter in this rank's flat fp32 partition."""
    zero, fragments = engine.optimizer, []
    if engine.zero_optimization_stage() == _WEIGHTS_DIVIDED:
        (holder,) = zero.fp32_partitioned_groups_flat
        for name, parameter in trained.items():
            divided: Any = parameter
            _, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
            fragments.append(Fragment(name, tuple(divided.ds_shape), divided.ds_numel, *_part_of(divided), offset))
    else:
        (holder,) = optimizer.param_groups[0]["params"]
        for name, parameter in trained.items():
            start = length = offset = 0
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
                offset = mapping.hp_fragment_address.start
            fragments.append(Fragment(name, tuple(parameter.shape), parameter.numel(), start, length, offset))
    group = dist.group.WORLD if dist.get_world_size() > 1 else None
    return Layout((holder,), (tuple(fragments),), group, engine.device)


def _part_of(divided: Any) -> tuple[int, int]:
    """First element and number of elements of the piece that a rank has of a parameter at stage 3."""
    each = divided.ds_tensor.ds_numel
    start = min(each * divided.ds_zero_partition_rank, divided.ds_numel)
    return start, min(each, divided.ds_numel - start)


def _check_partition_map(deepspeed: Any, layout: Layout, trained: Mapping[str, nn.Parameter]) -> None:
    """Refuse to train with a map that is wrong: it would corrupt the weights without a word."""
    lengths = layout.holders[0].new_tensor([fragment.length for _, fragment in layout], dtype=torch.int64)
    right = layout.reduce(lengths).tolist() == [fragment.numel for _, fragment in layout]
    for holder, fragment in layout:
        with deepspeed.zero.GatheredParameters([trained[fragment.name]]):
            mine, whole = piece(holder, fragment), trained[fragment.name].detach()
            right &= torch.equal(cut(whole, fragment).to(mine.device), mine.to(whole.dtype))
    if not right:
        raise TrainingError(
            "this version of DeepSpeed divides parameters in another way than its partition map says, or a setting in "
            "training.deepspeed changes it: use the pinned version, or take the setting out"
        )


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not trained:
        raise ConfigError("every parameter of the model is frozen, so there is nothing to train")
    return trained


def _frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: _host_copy(value) for name, value in model.named_parameters() if not value.requires_grad}


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
