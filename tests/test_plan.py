"""What a step would take: XLA's text read, and plans against programs that were compiled whole."""

import dataclasses
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from everything import costly
from rich.console import Console

import jcl
from jcl import InputError, hlo, plan
from jcl.__main__ import main
from jcl.grid import Replica
from jcl.program import Program

TINY = Path(__file__).parent / "configs" / "tiny.py"
MESH = "data=4,fsdp=2"

pytestmark = pytest.mark.xdist_group("plan")

TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[]}

%inner (param: f32[8,4], param.1: bf16[4,6]) -> f32[8,6] {
  %param = f32[8,4]{1,0} parameter(0)
  %param.1 = bf16[4,6]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,6]{1,0} dot(%param, %param.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %left = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %right = bf16[4,6]{1,0} constant({...})
  %fused = f32[8,6]{1,0} fusion(%left, %right), kind=kLoop, calls=%inner
  %sum = (f32[8,6]{1,0}, /*index=1*/pred[3]{0}) all-reduce(%fused, %flag), to_apply=%add
  ROOT %tuple = (s32[], f32[8,4]{1,0}) tuple(%left)
}

%small (one: f32[2,4]) -> f32[2,2] {
  %one = f32[2,4]{1,0} parameter(0)
  ROOT %dot.2 = f32[2,2]{1,0} dot(%one, %one), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%none (two: f32[2,4]) -> f32[2,2] {
  %two = f32[2,4]{1,0} parameter(0)
  ROOT %zero = f32[2,2]{1,0} broadcast(%two), dimensions={}
}

ENTRY %main (p: f32[2,4]) -> f32[] {
  %p = f32[2,4]{1,0} parameter(0)
  %gathered = f32[8,4]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  %scattered = f32[1,4]{1,0} reduce-scatter(%p), channel_id=2, dimensions={0}, to_apply=%add
  %loop = (s32[], f32[8,4]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %kernel = f32[5,3,2,16]{3,2,1,0} constant({...})
  %image = f32[8,12,12,4]{3,2,1,0} constant({...})
  %conv = f32[8,10,8,16]{3,2,1,0} convolution(%image, %kernel), window={size=5x3 pad=1_1x0_0}, dim_labels=b01f_01io->b01f, feature_group_count=2
  %until = (s32[], f32[8,4]{1,0}) while(%t), condition=%cond, body=%body
  %idle = (s32[]) while(%t), condition=%cond, body=%none
  %branch = f32[2,2]{1,0} conditional(%i, %p, %p), branch_computations={%none, %small}
  ROOT %end = f32[] constant(0)
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run_and_collectives_by_their_larger_side():
    found = hlo.work(TEXT)
    loops, branch, convolution = 5 + 1, 2 * 2 * 2 * 4, 2 * (8 * 10 * 8 * 16) * (5 * 3 * 2)
    assert found.flops == loops * (2 * 8 * 6 * 4) + branch + convolution
    assert found.unknown == 1  # of the two, the other has no matmul
    assert found.collectives == {
        "all-gather": 8 * 4 * 4,
        "all-reduce": loops * (8 * 6 * 4 + 3),
        "reduce-scatter": 2 * 4 * 4,
    }


def test_the_matmuls_of_a_scan_against_those_of_xla():
    def loop(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    def flops(function):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 64), (7, 64, 64))]
        compiled = jax.jit(function).lower(*shapes).compile()
        return hlo.work(compiled.as_text()).flops, compiled.cost_analysis()["flops"]

    ours, xla = flops(loop)
    assert ours == 7 * 2 * 32 * 64 * 64
    assert xla < ours / 6  # which counts the body once


def test_convolutions_against_those_of_xla():
    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 12, 12, 3), (5, 3, 3, 8))]
    compiled = jax.jit(convolve).lower(*shapes).compile()
    assert hlo.work(compiled.as_text()).flops == 2 * (4 * 8 * 10 * 8) * (5 * 3 * 3)
    backward = jax.grad(lambda *given: convolve(*given).sum(), argnums=1)
    compiled = jax.jit(backward).lower(*shapes).compile()
    assert hlo.work(compiled.as_text()).flops > 0


@dataclass(frozen=True)
class Config:
    layers: int = 5
    capacity: int = 0
    seed: int = 0


def build(config):
    shape = jcl.models.GPT2Config(
        64, positions=16, width=32, layers=config.layers, heads=2, dropout=0.0, remat=True
    )
    model = jcl.models.gpt2(shape)
    tokens = np.zeros((32, 16), np.int32)
    texts = jcl.data.Arrays({"inputs": tokens, "targets": tokens})
    replay = [jcl.replay(config.capacity, size=16)] if config.capacity else []
    return jcl.Experiment(
        name="plan",
        model=model,
        loss_fn=jcl.losses.causal_lm(model, chunk=128),
        strategy=jcl.chain(*replay, jcl.ewc(1.0), optax.adamw(1e-3)),
        stream=jcl.data.Stream("zeros", (jcl.data.Task("zeros", texts, texts, "zeros"),)),
        measure=jcl.losses.bits_per_byte(model, np.ones(64)),
        batch_size=16,
        steps=1,
    )


@costly
@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices: a CPU passes for them")
def test_a_plan_against_the_whole_program(monkeypatch):
    monkeypatch.setattr(plan, "DEPTHS", (1, 2))
    found = plan.plan(build, Config(layers=4), MESH)
    assert found.compiled == (1, 2)
    compiled = Program([Replica(build(Config(layers=4)))], MESH).lowered_step()[0].compile()
    told, done = compiled.memory_analysis(), hlo.work(compiled.as_text())
    batch, key, counters = 2 * (16 * 16 * 4) // 8, 8, 3 * 4
    state = found.params + found.optimizer + found.strategy + found.memory
    assert state + batch + key + counters == told.argument_size_in_bytes
    assert found.optimizer == 2 * found.params + 4
    assert (found.memory, found.strategy) == (0, 2 * found.params)
    np.testing.assert_allclose(found.flops, done.flops, rtol=1e-9)
    assert found.collectives.keys() == done.collectives.keys()
    for kind, size in done.collectives.items():
        np.testing.assert_allclose(found.collectives[kind], size, rtol=0.01)
    np.testing.assert_allclose(found.temporaries, told.temp_size_in_bytes, rtol=0.05)
    # 8 for 6, since remat runs the forward pass again, but for the last product of a block.
    assert 7 / 6 < found.flops / found.expected_flops < 8 / 6


def test_a_shallow_model_is_compiled_itself(monkeypatch):
    seen = []
    monkeypatch.setattr(
        plan, "_compiled",
        lambda experiment, mesh: (
            seen.append(experiment.model.config.layers), (8.0, 1.0, {}, 0, BATCH)
        )[1],
    )  # fmt: skip
    mesh = f"data={jax.device_count()}"
    assert plan.plan(build, Config(layers=3), mesh).compiled == ()
    assert seen == [3]
    del seen[:]
    found = plan.plan(build, Config(layers=9), mesh)
    assert (found.compiled, seen) == (plan.DEPTHS, [*plan.DEPTHS])
    assert found.tokens == 256


BATCH = {name: jax.ShapeDtypeStruct((16, 16), jnp.int32) for name in ("inputs", "targets")}


def test_the_line_through_two_depths(monkeypatch):
    def made_up(experiment, mesh):
        layers = experiment.model.config.layers
        return (
            100.0 + 10 * layers,
            7.0 * layers,
            {"all-gather": 5.0, "all-reduce": layers},
            1,
            BATCH,
        )

    monkeypatch.setattr(plan, "_compiled", made_up)
    devices = jax.device_count()
    found = plan.plan(build, Config(layers=12, capacity=64), f"data={devices}")
    assert (found.temporaries, found.flops) == (220, 84.0)
    assert found.collectives == {"all-gather": 5.0, "all-reduce": 12.0}
    assert found.memory == 2 * 64 * 16 * 4 // devices  # inputs and targets
    assert found.strategy == 2 * found.params + 4  # importance, anchor, how many were offered
    told = io.StringIO()
    plan.show(found, "made up", Console(file=told, width=200))
    assert "1 of its loops run until a condition holds: each is counted as if it ran once" in (
        told.getvalue()
    )


def test_the_command_in_a_process_of_its_own():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "jcl", "plan", str(TINY), "--mesh", "data=8,fsdp=2",
         "--batch-size", "16"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "16 devices, compiled and not run" in words
    for word in ("params", "optimizer", "strategy", "memory", "temporaries", "all-gather, GB"):
        assert word in words
    assert "16 GB: fits" in words
    assert "The model itself was compiled" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "data=64,fsdp=64"], "can pass for at most 2048"),
        (["--mesh", "data=7"], "JAX is in use already"),
        (["--mesh", "rows=8"], "is no axis of a mesh"),
    ],
)
def test_what_is_refused(arguments, message, capsys):
    assert main(["plan", str(TINY), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_mesh_that_cannot_split_the_batch_is_refused():
    config = dataclasses.replace(Config(), layers=1)
    odd = lambda config: dataclasses.replace(build(config), batch_size=12)
    with pytest.raises(InputError, match="A batch of 12 cannot be split"):
        plan.plan(odd, config, f"data={jax.device_count()}")
