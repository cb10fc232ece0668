"""Checks that a backend is what it says it is, and refuses what it hasn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from pydantic import ValidationError
from torch.utils.checkpoint import checkpoint

from ... import UserError
from ...albert_core.terminal.text import error_line
from ...backends import COMPILED_LAYOUTS, DTYPES, EIGHT_BIT, LAYOUTS, Backend, CastPolicy
from ...benchmarks.harness.document import ChoiceMade
from ...benchmarks.harness.document import Device as Described
from ..case import Checks, Device, Passed, UnsupportedError, ViolationError, require
from .placing import is_on

# Nobody has so many devices.
NO_INDEX = 10**6
# Numbers below are opened as long as there are devices.
MOST_DEVICES = 16

check = Checks("device")


@check("info", "info() describes the open device: name, torch device, emulated, untested. choices() can be listed.")
def describes_itself(device: Device) -> Passed:
    backend, info = device.backend, device.backend.info()
    registered = device.registered or backend.name
    same = f"it is registered as {registered!r}, and its class has the name {backend.name!r}; give both one name"
    require(registered == backend.name, same)
    require(bool(info.name.strip()), "info() has no name")
    require(info.backend == backend.name, f"info() is of backend {info.backend!r} instead of {backend.name!r}")
    require(info.device == str(backend.device), f"info() is of device {info.device!r} instead of {backend.device}")
    for what, said, true in (
        ("emulated", info.emulated, bool(backend.caveat)),
        ("untested", info.untested, backend.traits.untested),
    ):
        require(said == true, f"info() says {what}={said}, and the backend's caveat and traits say {true}")
    for what, value in (
        ("memory_bytes", info.memory_bytes),
        ("compute_units", info.compute_units),
        ("vendor_peak_tflops", info.vendor_peak_tflops),
        ("vendor_bandwidth_gbps", info.vendor_bandwidth_gbps),
    ):
        require(value is None or value > 0, f"info() says {what}={value}; an unknown figure is None")
    # As results have both.
    Described.of(info)
    for chosen in backend.choices(kept=True):
        ChoiceMade.of(chosen)
    return Passed(detail=info.name)


@check("traits", "The traits that are known before a backend is opened agree with the open one.")
def keeps_its_traits(device: Device) -> Passed:
    backend, traits = device.backend, device.backend.traits
    require(bool(traits.layouts), "the traits have no layout")
    unknown = [layout for layout in (*traits.layouts, traits.whole_model_layout) if layout not in LAYOUTS]
    require(not unknown, f"the traits have unknown layouts {unknown}; known are {', '.join(LAYOUTS)}")
    whole = traits.whole_model_layout
    require(whole in traits.layouts, f"whole models have the layout {whole}, which isn't among {traits.layouts}")
    found = tuple(backend.kernels())
    require(traits.kernels in ((), found), f"the traits have the kernels {traits.kernels}, and kernels() has {found}")
    odd = set(traits.trained_kernels) - set(found)
    require(not odd, f"the traits train whole models by {', '.join(sorted(odd))}, which kernels() lacks")
    hidden = {dtype for dtype in (*DTYPES, *EIGHT_BIT) if device.claims(dtype)} - set(traits.dtypes)
    require(not hidden, f"it has the dtypes {', '.join(sorted(hidden))}, which its traits don't name")
    require(traits.feature_batch_tokens > 0, f"the traits have feature_batch_tokens={traits.feature_batch_tokens}")
    grid = backend.static_shapes
    if grid is not None:
        free = set(traits.layouts) - set(COMPILED_LAYOUTS)
        require(not free, f"{' and '.join(sorted(free))} batches have many shapes, and static_shapes is a grid")
        lengths = grid.lengths or (1,)
        rising = lengths == tuple(sorted(set(lengths))) and lengths[0] > 0 and grid.batch_tokens > 0
        require(rising, f"static_shapes has {grid.batch_tokens} tokens and the lengths {lengths}")
    groups = [part.rpartition(":")[2] for part in (traits.process_group or "").split(",") if part]
    missing = [group for group in groups if not torch.distributed.is_backend_available(group)]
    require(not missing, f"processes communicate by {', '.join(missing)}, which this torch hasn't")
    return Passed()


@check(
    "recompute", "If the traits say so, torch.utils.checkpoint computes a layer again in backward, dropout included."
)
def recomputes(device: Device) -> Passed:
    if not device.backend.traits.recomputes:
        raise UnsupportedError("the traits say that it can't")
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 4))
    module = device.backend.place(module)
    inputs = device.backend.place(torch.randn(8, 16, generator=device.generator()))
    saved = device.backend.rng_state()

    def gradients(run: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        device.backend.set_rng_state(saved)
        run(inputs).square().sum().backward()
        found = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        read = [gradient.clone() for gradient in device.read(*found)]
        module.zero_grad(set_to_none=True)
        return read

    stored = gradients(module)
    again = gradients(lambda given: checkpoint(module, given, use_reentrant=False))
    require(len(stored) == len(again) == 4, f"{len(again)} of 4 parameters have a gradient")
    for one, other in zip(stored, again, strict=True):
        require(torch.allclose(one, other, rtol=1e-3, atol=1e-4), "a computed-again layer has another gradient")
    return Passed()


@check("cast-policy", "Each dtype has a cast policy with known dtypes and a reason, or is refused with a UserError.")
def has_policies(device: Device) -> Passed:
    claimed = []
    for dtype in (*DTYPES, *EIGHT_BIT):
        policies = list(_policies(device, dtype))
        for policy in policies:
            parts = (policy.param, policy.compute, policy.accumulate)
            require(policy.requested == dtype, f"the policy of {dtype} says that {policy.requested} was requested")
            require(set(parts) <= {*DTYPES, *EIGHT_BIT}, f"the policy of {dtype} has unknown dtypes: {parts}")
            narrow = torch.bfloat16 if policy.eight_bit else _torch(policy.compute)
            width = torch.finfo(_torch(policy.accumulate)).bits - torch.finfo(narrow).bits
            require(width >= 0, f"the policy of {dtype} sums {policy.compute} products in {policy.accumulate}")
            require(bool(policy.reason.strip()), f"the policy of {dtype} gives no reason")
            require(bool(device.backend.error_budget(policy).backend), f"the policy of {dtype} has no error budget")
        if policies:
            claimed.append(dtype)
    require(bool(claimed), "no dtype has a cast policy")
    return Passed(detail=", ".join(claimed))


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found


def _policies(device: Device, dtype: str) -> Iterator[CastPolicy]:
    """The policy of `dtype`, the strict one, and those for models that are trained whole; none if it is refused.

    Nothing is trained in 8 bits.
    """
    for strict in (False, True):
        try:
            policy = device.backend.cast_policy(dtype, strict=strict)
        except UserError:
            return
        yield policy
        if policy.eight_bit:
            _require_refusal(f"a model trained whole in {dtype}", partial(device.backend.whole_model_policy, policy))
        else:
            yield device.backend.whole_model_policy(policy)


@check("kernels", "kernels() names the frozen encoder's kernels with reasons, and one of them can run.")
def has_kernels(device: Device) -> Passed:
    found = device.backend.kernels()
    unexplained = [name for name, state in found.items() if not state.reason.strip()]
    require(not unexplained, f"kernels {', '.join(unexplained)} have no reason")
    usable = [name for name, state in found.items() if state.ok]
    require(bool(usable), f"none of the kernels {', '.join(found) or '(there are none)'} can run")
    reserved = {"auto", "transformers"} & set(found)
    require(not reserved, f"a kernel is called {', '.join(reserved)}, which every backend has")
    return Passed(detail=", ".join(usable))


def _require_refusal(what: str, action: Callable[[], object]) -> None:
    """Requires that `action` raises a UserError of one line."""
    try:
        action()
    except UserError as error:
        lines = str(error).splitlines()
        require(len(lines) == 1, f"the error for {what} has {len(lines)} lines instead of one")
    except Exception as error:
        raise ViolationError(f"{what} raises {error_line(error)} instead of a UserError") from error
    else:
        raise ViolationError(f"{what} is accepted")


@check("unknown-dtype", "An unknown dtype is refused with a UserError.")
def refuses_dtypes(device: Device) -> Passed:
    for dtype in ("float12", "int7", ""):
        _require_refusal(f"the dtype {dtype!r}", partial(device.backend.cast_policy, dtype))
    return Passed()


@check("unknown-kernel", "An unknown kernel is refused with a UserError.")
def refuses_kernels(device: Device) -> Passed:
    from ...albert_core.model.encoder import load_encoder

    weights = load_encoder("random:tiny").weights
    policy = device.backend.cast_policy(_first_claimed(device))
    _require_refusal("the kernel 'warp'", lambda: device.backend.frozen_encoder(weights, policy, "warp"))
    return Passed()


def _first_claimed(device: Device) -> str:
    found = next((dtype for dtype in DTYPES if device.claims(dtype)), None)
    if found is None:
        raise ViolationError("no dtype has a cast policy")
    return found


@check(
    "unknown-index", "Device numbers that don't exist are refused with a UserError; the others are different devices."
)
def refuses_indices(device: Device) -> Passed:
    there, refusal = _numbered(device)
    last = there[-1] if there else device.backend
    if last is not device.backend:
        placed = last.place(torch.ones(3))
        (got,) = Device(last).read(placed)
        found = is_on(placed, last) and torch.equal(got, torch.ones(3))
        require(found, f"number {last.index} opens, and isn't there")
    if not refusal:
        return Passed(detail="every number is a device")
    for number, other in enumerate(there):
        first = [_identity(one) for one in there].index(_identity(other))
        require(first == number, f"numbers {first} and {number} are the same device, {other.info().name}")
    return Passed(detail=refusal)


def _numbered(device: Device) -> tuple[list[Backend], str]:
    """The backend's devices in the order of their numbers, and the first refusal; it is empty if there is none.

    Raises:
        ViolationError: A number is accepted, and a smaller one is refused.
    """
    own = device.backend.index or 0
    there: list[Backend] = []
    refusal = ""
    for number in (*range(MOST_DEVICES), NO_INDEX):
        other = device.backend if number == own else _opened(device, number)
        if isinstance(other, str):
            refusal = refusal or other
            continue
        require(not refusal, f"number {number} is accepted, and number {len(there)} is refused")
        there.append(other)
    if len(there) > 1:
        # A device that is opened may become torch's current one.
        _opened(device, own)
    return there, refusal


def _opened(device: Device, number: int) -> Backend | str:
    """The backend's device with this number, or the error that refuses it."""
    kind = type(device.backend)
    try:
        return kind(number) if kind.Options is None else kind(number, device.backend.options)
    except UserError as error:
        return str(error)
    except Exception as error:
        raise ViolationError(f"number {number} raises {error_line(error)} instead of a UserError") from error


def _identity(backend: Backend) -> object:
    """What tells devices apart: torch's number, or what the backend says of them if torch has none."""
    return backend.info() if backend.device.index is None else backend.device


@check("unknown-option", "An unknown option is refused instead of ignored.")
def refuses_options(device: Device) -> Passed:
    options = type(device.backend).Options
    if options is None:
        raise UnsupportedError("the backend takes no options")
    try:
        options.model_validate({"no_such_option": 1})
    except ValidationError:
        return Passed()
    raise ViolationError("Options accepts the unknown key no_such_option; set extra='forbid'")


@check("missing-generator", "A saved state that lacks a generator is refused with a UserError.")
def refuses_states(device: Device) -> Passed:
    saved = device.backend.rng_state()
    for name in saved:
        rest = {other: state for other, state in saved.items() if other != name}
        _require_refusal(f"a state without {name!r}", partial(device.backend.set_rng_state, rest))
    return Passed()
