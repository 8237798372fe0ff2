"""Hugging Face's models in PyTorch, for the tests that compare with them."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl

torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")


def made(model, spread=0.2):
    """The model with random biases and scales too, and weights large enough to tell errors by."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 2 + spread * torch.randn_like(parameter))
    return model.eval()


def masks(batch, length):
    """{padding: [batch, length]}, rows of several lengths."""
    rows = np.array([length, max(length - 3, 1), 2])[np.arange(batch) % 3]
    right = (np.arange(length) < rows[:, None]).astype(np.int32)
    return {"right": right, "left": right[:, ::-1].copy(), "none": np.ones_like(right)}


def compare_decoders(theirs, model, params, inputs, *, logits=1e-4, gradients=1e-3):
    """Logits, loss and gradients with each padding, in float32."""
    family = importlib.import_module(type(model.config).__module__)
    tensors = family.tensors(model.config)
    loss_fn = jax.jit(
        jax.value_and_grad(jcl.losses.causal_lm(model.apply), has_aux=True), static_argnums=2
    )
    tokens = torch.tensor(np.asarray(inputs, np.int64))
    for padding, real in masks(*inputs.shape).items():
        mask = torch.tensor(real.astype(np.int64))
        answer = theirs(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        ).logits
        counted = np.zeros_like(real)
        counted[:, :-1] = real[:, :-1] * real[:, 1:]
        ours = {
            "inputs": jnp.asarray(inputs),
            "targets": jnp.roll(inputs, -1, axis=1),
            "mask": jnp.asarray(counted),
            "attention_mask": jnp.asarray(real),
        }
        (loss, aux), gradient = loss_fn(params, ours, None)
        at = real.astype(bool)
        np.testing.assert_allclose(
            aux["logits"][at], answer.detach().numpy()[at], atol=logits, err_msg=padding
        )
        where = torch.tensor(counted.astype(bool))
        expected = torch.nn.functional.cross_entropy(answer[where], tokens.roll(-1, 1)[where])
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5, err_msg=padding)

        theirs.zero_grad()
        expected.backward()
        by_name = dict(theirs.named_parameters())
        largest = 0.0
        for path, tensor in tensors.items():
            found = gradient
            for name in path.split("/"):
                found = found[name]
            wanted = by_name[tensor.name].grad.numpy()
            wanted = wanted.T if tensor.transpose else wanted
            np.testing.assert_allclose(found, wanted, atol=gradients, err_msg=f"{padding} {path}")
            largest = max(largest, float(np.abs(wanted).max()))
        assert largest > 0.05  # the tolerance is small against what it compares
