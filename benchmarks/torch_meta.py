"""MAML in PyTorch, written two ways, as benchmarks/meta.py times it; it imports no JAX."""

import copy

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

LOSSES = {"squared_error": nn.functional.mse_loss, "classify": nn.functional.cross_entropy}


def mlp(config, way):
    """The network of `jcl.models.mlp`."""
    widths, layers = (config.inputs, *config.hidden), {}
    for number, width in enumerate(config.hidden):
        layers[f"layer_{number}"] = nn.Linear(widths[number], width)
        layers[f"relu_{number}"] = nn.ReLU()
    return _named(layers, nn.Linear(widths[-1], config.classes))


def convolutional(config, way):
    """The network of `jcl.models.convolutional`, of images [batch, channels, height, width]."""
    channels, layers = config.channels, {}
    # PyTorch's own is right and quicker where autograd differentiates twice; under vmap and grad of
    # torch.func its second derivative is wrong, in float64 too (by 1 % of the meta-gradient here).
    normalization = BatchNormalization if way == "torch.func" else nn.BatchNorm2d
    for number in range(config.blocks):
        layers[f"block_{number}"] = nn.Sequential(
            nn.Conv2d(channels, config.filters, 3, stride=2, padding=1, bias=False),
            normalization(config.filters, eps=1e-3, track_running_stats=False),
            nn.ReLU(),
        )
        channels = config.filters
    layers["flat"] = nn.Flatten()
    height, width = (-(-size // 2**config.blocks) for size in (config.height, config.width))
    return _named(layers, nn.Linear(channels * height * width, config.classes))


class BatchNormalization(nn.Module):
    """By the mean and variance of the batch, in plain operations."""

    def __init__(self, filters, eps, track_running_stats):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(filters))
        self.bias = nn.Parameter(torch.zeros(filters))
        self.eps = eps

    def forward(self, x):
        x = x - x.mean((0, 2, 3), keepdim=True)
        scale = torch.rsqrt((x * x).mean((0, 2, 3), keepdim=True) + self.eps)
        return x * scale * self.weight[:, None, None] + self.bias[:, None, None]


def _named(layers, head):
    module = nn.Sequential()
    for name, layer in {**layers, "head": head}.items():
        module.add_module(name, layer)
    return module


def by_name(params, config):
    """jcl's tree of params, or gradients, as arrays by PyTorch's names and in its order of axes."""
    arrays = {}
    for name, part in _leaves(params):
        if name.endswith("convolution/kernel"):
            array = part.reshape(3, 3, -1, part.shape[-1]).transpose(3, 2, 0, 1)
            arrays[name.replace("convolution/kernel", "0/weight")] = array
        elif name.endswith("kernel"):
            if name.startswith("head") and hasattr(config, "filters"):
                # Pixels within channels rather than channels within pixels.
                part = part.reshape(-1, config.filters, part.shape[-1]).swapaxes(0, 1)
                part = part.reshape(-1, part.shape[-1])
            arrays[name.replace("kernel", "weight")] = part.T
        elif name.startswith("block"):
            arrays[name.replace("scale", "1/weight").replace("bias", "1/bias")] = part
        else:
            arrays[name] = part
    return {name.replace("/", "."): array for name, array in arrays.items()}


def _leaves(tree, path=()):
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _leaves(part, (*path, name))
        else:
            yield "/".join((*path, name)), np.asarray(part)


def load(module, arrays):
    module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return module.train()


def tensors(batch, config):
    """An episode's arrays as tensors: whole numbers as int64, images with an axis of channels."""

    def tensor(name, array):
        array = np.asarray(array)
        if hasattr(config, "filters") and name.endswith("inputs"):
            array = array.reshape(*array.shape[:2], config.channels, config.height, config.width)
        return torch.tensor(array.astype(np.int64) if array.dtype == np.int32 else array)

    return {name: tensor(name, array) for name, array in batch.items()}


def by_vmap(module, loss, steps, rate):
    """batch -> meta-loss, its gradient by name: torch.func over a batch of tasks."""
    params = {name: param.detach() for name, param in module.named_parameters()}

    def of(params, inputs, targets):
        return loss(functional_call(module, params, (inputs,)), targets)

    def one(params, support_inputs, support_targets, inputs, targets):
        for _ in range(steps):
            gradient = grad(of)(params, support_inputs, support_targets)
            params = {name: param - rate * gradient[name] for name, param in params.items()}
        return of(params, inputs, targets)

    def every(params, batch):
        names = ("support_inputs", "support_targets", "inputs", "targets")
        each = vmap(one, in_dims=(None, 0, 0, 0, 0))
        return each(params, *(batch[name] for name in names)).mean()

    def run(batch):
        # The tensors are those that the optimizer changes in place.
        gradient, value = grad_and_value(every)(params, batch)
        return value, gradient

    return run


def by_loop(module, loss, steps, rate):
    """batch -> meta-loss, its gradient by name: a loop over tasks, each with a clone of the module
    that it adapts with create_graph=True, and one backward pass through all of them."""

    def run(batch):
        tasks = len(batch["targets"])
        total = 0.0
        for task in range(tasks):
            twin = _clone(module)
            for _ in range(steps):
                value = loss(twin(batch["support_inputs"][task]), batch["support_targets"][task])
                gradient = torch.autograd.grad(value, list(twin.parameters()), create_graph=True)
                _move(twin, gradient, rate)
            total = total + loss(twin(batch["inputs"][task]), batch["targets"][task])
        module.zero_grad(set_to_none=True)
        value = total / tasks
        value.backward()
        return value.detach(), {name: param.grad for name, param in module.named_parameters()}

    return run


def _clone(module):
    """The module with params that are functions of its own, through which gradients flow."""
    twin = copy.copy(module)
    twin._parameters = {
        name: param if param is None else param.clone()
        for name, param in module._parameters.items()
    }
    twin._modules = {name: _clone(part) for name, part in module._modules.items()}
    return twin


def _move(module, gradient, rate):
    gradient = iter(gradient)
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None:
                part._parameters[name] = param - rate * next(gradient)


def step(module, gradient_of, rate):
    """batch -> None: one step of Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
    params = dict(module.named_parameters())

    def run(batch):
        for name, gradient in gradient_of(batch)[1].items():
            params[name].grad = gradient
        optimizer.step()

    return run


WAYS = {"torch.func": by_vmap, "loop": by_loop}
