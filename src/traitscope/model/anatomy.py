"""Where the residual stream of a model can be read, found by running the model.

A block adds what attention and MLP computed to the stream. So one small forward pass, during which every
submodule's inputs and outputs are recorded, shows numerically which tensor is ``resid_mid`` and which module
outputs were added, whatever the classes and attributes are called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from traitscope.checkpoints import Checkpoint, checkpoints_of
from traitscope.errors import InputError
from traitscope.model.quantisation import plain_tensor
from traitscope.model.tensors import arguments, nth_wide_tensor, wide_tensors

_RELATIVE_TOLERANCE = 1e-4
_ROUNDING = 1e-6
_PROBE_BATCH, _PROBE_LENGTH = 2, 8


@dataclass(frozen=True)
class Site:
    """A tensor of width d_model that passes a module.

    ``module`` is the dotted path from the model's root, ``end`` the side of the module, and ``index`` counts
    the tensors of that width at that side.
    """

    module: str
    end: Literal["input", "output"]
    index: int = 0


@dataclass(frozen=True)
class Contribution:
    """What a block added to the stream: ``scale`` times the tensor at ``site``."""

    site: Site
    scale: float


@dataclass(frozen=True)
class LayerAnatomy:
    """One decoder layer: the path of its module, how its block is built and where it writes."""

    path: str
    kind: Literal["sequential", "parallel", "single"]
    resid_mid: Site | None
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Anatomy:
    """Embedding, decoder layers and readable states of one model."""

    embedding: str
    layers: tuple[LayerAnatomy, ...]
    final_norm: str | None
    d_model: int

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return checkpoints_of([layer.resid_mid is not None for layer in self.layers])

    def site(self, checkpoint: Checkpoint) -> Site:
        """Where to read ``checkpoint``."""
        layer = self.layers[checkpoint.layer]
        if checkpoint.site == "resid_pre":
            return Site(layer.path, "input")
        if checkpoint.site == "resid_post":
            return Site(layer.path, "output")
        assert layer.resid_mid is not None
        return layer.resid_mid


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find where ``model``'s residual stream can be read and prove it on one small forward pass.

    The pass runs on random token ids. In every layer, neighbouring checkpoints must differ by exactly what
    the block added (relative error below 1e-4 in float32; lower-precision layers are raised to float32 for
    the pass), and every ``resid_post`` must equal the model's own ``hidden_states``.

    Raises:
        InputError: the model is not a decoder whose layers add to one stream; names layer, site, mismatch.
    """
    text_config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    d_model = int(text_config.hidden_size)
    layer_paths = _decoder_layer_paths(model, int(text_config.num_hidden_layers))
    input_ids = _probe_ids(model, int(text_config.vocab_size))
    layers = _probe_layers(model, layer_paths, d_model, input_ids)
    final_norm = _check_hidden_states(model, layer_paths, d_model, input_ids)
    embedding = _path_of(model, model.get_input_embeddings())  # type: ignore[operator]
    return Anatomy(embedding, tuple(layers), final_norm, d_model)


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    for path, module in model.named_modules():
        if module is wanted:
            return path
    raise InputError("the model's input embedding is not part of its module tree")


def _decoder_layer_paths(model: nn.Module, n_layers: int) -> list[str]:
    candidates = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and _holds_parameters(module)
    ]
    outermost = [path for path in candidates if not any(path.startswith(f"{o}.") for o in candidates)]
    if len(outermost) != 1:
        raise InputError(
            f"cannot tell which of the model's modules are its {n_layers} decoder layers: "
            f"{outermost or 'no list of that length'}; only decoder-only language models are supported"
        )
    return [f"{outermost[0]}.{layer}" for layer in range(n_layers)]


def _holds_parameters(modules: nn.ModuleList) -> bool:
    return all(any(True for _ in module.parameters()) for module in modules)


def _probe_ids(model: nn.Module, vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    low = min(3, vocab_size - 1)
    ids = torch.randint(low, vocab_size, (_PROBE_BATCH, _PROBE_LENGTH), generator=generator)
    return ids.to(next(model.parameters()).device)


def _probe_layers(
    model: nn.Module, layer_paths: list[str], d_model: int, input_ids: torch.Tensor
) -> list[LayerAnatomy]:
    """Run once, explaining each layer as soon as it has run, so that one layer's tensors are held."""
    found: list[LayerAnatomy] = []
    previous_post: list[torch.Tensor] = []

    def explain(path: str, record: _LayerRecord) -> None:
        layer = len(found)
        if previous_post and not torch.equal(record.pre.to(previous_post[0].dtype), previous_post[0]):
            raise _refusal(layer, "resid_pre", "differs from the resid_post of the layer before")
        found.append(_explain_layer(layer, path, record))
        previous_post[:] = [record.post_as_passed_on]

    with ExitStack() as stack:
        for path in layer_paths:
            stack.enter_context(_recorded_layer(model, path, d_model, explain))
        with torch.inference_mode():
            model(input_ids=input_ids, use_cache=False)
    if len(found) != len(layer_paths):
        raise InputError(f"only {len(found)} of {len(layer_paths)} decoder layers ran in a forward pass")
    return found


@dataclass
class _LayerRecord:
    """What passed through one layer, in order of execution; tensors are float32 ``[tokens, d_model]``."""

    pre: torch.Tensor
    post: torch.Tensor
    post_as_passed_on: torch.Tensor
    passing: list[tuple[Site, torch.Tensor]]


@contextmanager
def _recorded_layer(model: nn.Module, path: str, d_model: int, explain: Any) -> Iterator[None]:
    layer = model.get_submodule(path)
    stream_dtype = next(parameter.dtype for parameter in layer.parameters() if parameter.is_floating_point())
    passing: list[tuple[Site, torch.Tensor]] = []
    entered: dict[str, Any] = {}
    handles = []

    def keep(site_path: str, end: Literal["input", "output"], values: Any) -> None:
        for index, tensor in enumerate(wide_tensors(values, d_model)):
            if tensor.numel() == entered["pre"].numel():
                state = tensor.detach().reshape(-1, d_model).float().clone()
                passing.append((Site(site_path, end, index), state))

    def on_enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        entered["pre_raw"] = nth_wide_tensor(arguments(args, kwargs), d_model, 0)
        if entered["pre_raw"] is None:
            raise InputError(f"{path} receives no tensor of width {d_model}: not a decoder layer")
        entered["pre"] = entered["pre_raw"].detach().reshape(-1, d_model).float().clone()
        entered["dtypes"] = _raise_to_float32(module)
        return _cast(args, torch.float32), _cast(kwargs, torch.float32)

    def on_leave(module: nn.Module, _args: Any, output: Any) -> Any:
        _restore(entered["dtypes"])
        post = nth_wide_tensor(output, d_model, 0)
        if post is None:
            raise InputError(f"{path} returns no tensor of width {d_model}: not a decoder layer")
        passed_on = _cast(output, stream_dtype)
        raw = nth_wide_tensor(passed_on, d_model, 0)
        assert raw is not None
        state = post.detach().reshape(-1, d_model).float().clone()
        record = _LayerRecord(entered["pre"], state, raw.detach().reshape(-1, d_model).clone(), passing[:])
        passing.clear()
        explain(path, record)
        return passed_on

    def watch(site_path: str, module: nn.Module) -> None:
        handles.append(
            module.register_forward_pre_hook(
                lambda _m, args, kwargs: keep(site_path, "input", arguments(args, kwargs)), with_kwargs=True
            )
        )
        handles.append(module.register_forward_hook(lambda _m, _args, output: keep(site_path, "output", output)))

    try:
        handles.append(layer.register_forward_pre_hook(on_enter, with_kwargs=True))
        for name, module in layer.named_modules():
            if name:
                watch(f"{path}.{name}", module)
        handles.append(layer.register_forward_hook(on_leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _raise_to_float32(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Replace lower-precision parameters by float32 copies; returns what is needed to undo it."""
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    for inner in module.modules():
        for name, parameter in inner.named_parameters(recurse=False):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                replaced.append((inner, name, parameter))
                raised = plain_tensor(parameter.data).float()
                setattr(inner, name, nn.Parameter(raised, requires_grad=parameter.requires_grad))
    return replaced


def _restore(replaced: list[tuple[nn.Module, str, nn.Parameter]]) -> None:
    for module, name, parameter in replaced:
        setattr(module, name, parameter)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, torch.Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if isinstance(values, dict):
        return {key: _cast(value, dtype) for key, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)(_cast(value, dtype) for value in values)
    return values


def _explain_layer(layer: int, path: str, record: _LayerRecord) -> LayerAnatomy:
    passing = _passed_once(record.passing)
    outputs = [(site, tensor) for site, tensor in passing if site.end == "output"]
    for site, candidate in passing:
        if not (_moved(record.pre, candidate) and _moved(candidate, record.post)):
            continue
        first = _scaled_output(candidate - record.pre, outputs, candidate)
        second = _scaled_output(record.post - candidate, outputs, record.post)
        if first is not None and second is not None:
            return LayerAnatomy(path, "sequential", site, (first, second))
    whole = record.post - record.pre
    single = _scaled_output(whole, outputs, record.post)
    if single is not None:
        return LayerAnatomy(path, "single", None, (single,))
    pair = _scaled_pair(whole, outputs, record.post)
    if pair is not None:
        return LayerAnatomy(path, "parallel", None, pair)
    raise _refusal(layer, "resid_post", _nearest_miss(whole, outputs))


def _passed_once(passing: list[tuple[Site, torch.Tensor]]) -> list[tuple[Site, torch.Tensor]]:
    """Without the sites of modules that a layer calls several times, such as a dropout that its blocks share."""
    calls = Counter(site for site, _ in passing)
    return [(site, tensor) for site, tensor in passing if calls[site] == 1]


def _moved(before: torch.Tensor, after: torch.Tensor) -> bool:
    return bool((after - before).norm() > 10 * _ROUNDING * after.norm())


def _explains(difference: torch.Tensor, predicted: torch.Tensor, state: torch.Tensor) -> bool:
    error = (difference - predicted).norm()
    return bool(error <= _RELATIVE_TOLERANCE * difference.norm() + _ROUNDING * state.norm())


def _scaled_output(
    difference: torch.Tensor, outputs: list[tuple[Site, torch.Tensor]], state: torch.Tensor
) -> Contribution | None:
    """The last module output that is ``difference`` up to one factor."""
    for site, output in reversed(outputs):
        square = (output * output).sum()
        if square == 0:
            continue
        scale = _exact_one(float((difference * output).sum() / square))
        if scale != 0 and _explains(difference, scale * output, state):
            return Contribution(site, scale)
    return None


def _scaled_pair(
    difference: torch.Tensor, outputs: list[tuple[Site, torch.Tensor]], state: torch.Tensor
) -> tuple[Contribution, Contribution] | None:
    """Two module outputs whose scaled sum is ``difference``."""
    target = difference.flatten().double()
    for later in range(len(outputs) - 1, 0, -1):
        for earlier in range(later - 1, -1, -1):
            basis = torch.stack([outputs[i][1].flatten().double() for i in (earlier, later)])
            gram = basis @ basis.T
            determinant = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
            if determinant <= 1e-9 * gram[0, 0] * gram[1, 1]:
                continue
            scales = torch.linalg.solve(gram, basis @ target)
            if bool((scales.abs() > 1e-6).all()) and _explains(target, scales @ basis, state):
                return (
                    Contribution(outputs[earlier][0], _exact_one(float(scales[0]))),
                    Contribution(outputs[later][0], _exact_one(float(scales[1]))),
                )
    return None


def _exact_one(scale: float) -> float:
    """A fitted scale without the rounding of the fit where it is that of a plain sum."""
    return 1.0 if abs(scale - 1) < _RELATIVE_TOLERANCE else scale


def _nearest_miss(difference: torch.Tensor, outputs: list[tuple[Site, torch.Tensor]]) -> str:
    if not outputs:
        return "no submodule returns a tensor of the stream's width"
    misses = [float((difference - output).norm() / difference.norm()) for _, output in outputs]
    return f"what the block added is no sum of its submodules' outputs (nearest is off by {min(misses):.1%})"


def _refusal(layer: int, site: str, mismatch: str) -> InputError:
    return InputError(
        f"the residual stream cannot be read: layer {layer}, {site}: {mismatch}; this architecture is not supported"
    )


def _check_hidden_states(model: nn.Module, layer_paths: list[str], d_model: int, input_ids: torch.Tensor) -> str | None:
    """Compare layer outputs with ``output_hidden_states``; returns the path of the final norm, if any."""
    posts: dict[str, torch.Tensor] = {}
    outside: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    handles = []

    def keep_post(path: str, output: Any) -> None:
        post = nth_wide_tensor(output, d_model, 0)
        assert post is not None
        posts[path] = post.detach().clone()

    def keep_outside(path: str, args: Any, output: Any) -> None:
        given, returned = nth_wide_tensor(args, d_model, 0), nth_wide_tensor(output, d_model, 0)
        if given is not None and returned is not None:
            outside.append((path, given.detach().clone(), returned.detach().clone()))

    try:
        for path in layer_paths:
            handles.append(
                model.get_submodule(path).register_forward_hook(
                    lambda _m, _args, output, path=path: keep_post(path, output)
                )
            )
        for path, module in model.named_modules():
            if path and not any(path == p or path.startswith(f"{p}.") for p in layer_paths):
                handles.append(
                    module.register_forward_hook(lambda _m, args, output, path=path: keep_outside(path, args, output))
                )
        with torch.inference_mode():
            output = model(input_ids=input_ids, use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    return _compare_hidden_states([posts[path] for path in layer_paths], output.hidden_states, outside)


def _compare_hidden_states(
    posts: list[torch.Tensor],
    hidden_states: tuple[torch.Tensor, ...],
    outside: list[tuple[str, torch.Tensor, torch.Tensor]],
) -> str | None:
    for layer, post in enumerate(posts[:-1]):
        mismatch = _relative(post, hidden_states[layer + 1])
        if mismatch > _RELATIVE_TOLERANCE:
            raise _refusal(layer, "resid_post", f"differs from hidden_states[{layer + 1}] by {mismatch:.1e}")
    last_post, last_hidden = posts[-1], hidden_states[-1]
    for path, given, returned in reversed(outside):
        same_shape = given.numel() == last_post.numel() and returned.numel() == last_hidden.numel()
        if same_shape and _relative(given, last_post) == 0 and _relative(returned, last_hidden) == 0:
            return path
    if _relative(last_post, last_hidden) > _RELATIVE_TOLERANCE:
        raise _refusal(
            len(posts) - 1,
            "resid_post",
            "neither it nor a norm of it is the last of the model's hidden_states",
        )
    return None


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.reshape(-1).float(), expected.reshape(-1).float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
