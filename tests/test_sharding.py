"""Meshes and the rules by which a learner's state is split over them."""

import json
import logging
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jcl
from jcl import InputError
from jcl.__main__ import load_config, main
from jcl.program import Program
from jcl.run import _build
from jcl.sharding import Placement, _own, read_mesh

TINY = Path(__file__).parent / "configs" / "tiny.py"
GPT2 = jcl.models.GPT2Config(64, positions=16, width=32, layers=2, heads=4)

pytestmark = [
    pytest.mark.xdist_group("sharding"),
    pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices: a CPU passes for them"),
]


def abstract(*parts, model=None, batch_size=16):
    """The shapes of a learner's state."""
    model = model or jcl.models.gpt2(GPT2)
    tokens = jax.ShapeDtypeStruct((batch_size, 16), jnp.int32)
    batch = {"inputs": tokens, "targets": tokens}
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), jcl.chain(*parts))

    def init():
        return learner.init(jax.random.key(0), model.init(jax.random.key(0)), batch)

    return jax.eval_shape(init)


def specs(state, mesh):
    shardings = Placement(mesh=mesh).state(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }


def bytes_on_one(tree, shardings):
    """Bytes that one device holds of a tree."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(np.prod(own.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, own in pairs)


def test_every_tree_of_the_params_size_falls_as_one_over_fsdp():
    state = abstract(jcl.ewc(1.0), jcl.lwf(1.0), optax.adamw(1e-3), jcl.si(1.0), jcl.packnet(0.5))
    size = bytes_on_one(state.params, Placement().state(state).params)
    trees = {
        "params": lambda state: state.params,
        "fisher": lambda state: state.strategy[0].importance,
        "anchor": lambda state: state.strategy[0].anchor,
        "teacher": lambda state: state.strategy[1].params,
        "first moment": lambda state: state.strategy[2][0].mu,
        "second moment": lambda state: state.strategy[2][0].nu,
        "importance": lambda state: state.strategy[3].importance,
        "path": lambda state: state.strategy[3].path,
    }
    for fsdp in (1, 2, 4, 8):
        shardings = Placement(mesh=f"data={8 // fsdp},fsdp={fsdp}").state(state)
        for name, part in trees.items():
            assert bytes_on_one(part(state), part(shardings)) == size / fsdp, (name, fsdp)
        for leaf, own in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
            if leaf.ndim and leaf.dtype != bool:  # PackNet's owners, of another type, as well
                assert np.prod(own.shard_shape(leaf.shape)) == leaf.size / fsdp, leaf


def test_the_rules_of_a_block():
    found = specs(abstract(jcl.replay(24, size=8), optax.adamw(1e-3)), "data=2,fsdp=2,tensor=2")
    block = "strategy/1/0/mu/h_1"
    expected = {
        f"{block}/attn/c_attn/kernel": ("fsdp", "tensor"),
        f"{block}/attn/c_attn/bias": ("tensor",),
        f"{block}/attn/c_proj/kernel": ("tensor", "fsdp"),
        f"{block}/attn/c_proj/bias": ("fsdp",),
        f"{block}/mlp/c_fc/kernel": ("fsdp", "tensor"),
        f"{block}/mlp/c_proj/kernel": ("tensor", "fsdp"),
        f"{block}/ln_1/scale": ("fsdp",),
        "params/wte": ("fsdp", None),
        "strategy/0/items/inputs": ("data",),
        "strategy/0/seen": (),
        "key": (),
        "step": (),
    }
    for path, spec in expected.items():
        assert found[path] == PartitionSpec(*spec), path


def test_what_keeps_the_params_of_every_task_follows_their_rule():
    state = abstract(jcl.separate("*", tasks=3), jcl.per_task(optax.adamw(1e-3)))
    found = specs(state, "data=2,fsdp=4")
    assert found["params/h_0/mlp/c_fc/kernel"] == PartitionSpec(None, "fsdp")
    assert found["strategy/0/kept/h_0/mlp/c_fc/kernel"] == PartitionSpec(None, None, "fsdp")


def test_lora_and_the_ring_of_last_batches():
    model = jcl.models.lora(jcl.models.gpt2(GPT2), rank=2, alpha=4.0, where="*attn*")
    adapters = jcl.only("lora/*", optax.adamw(1e-3))
    ring = jcl.periodically(jcl.only("lora/*", jcl.ewc(1.0)), every=4, batches=2)
    state = abstract(ring, adapters, jcl.freeze("*", but="lora/*"), model=model)
    found = specs(state, "data=4,fsdp=2")
    path = "lora/h_0/attn/c_attn"
    for place in ("params", "strategy/0/inner/anchor", "strategy/1/0/mu"):
        assert found[f"{place}/{path}/a"] == PartitionSpec(None, "fsdp", None)
        assert found[f"{place}/{path}/b"] == PartitionSpec(None, None, "fsdp")
    assert found["strategy/0/ring/inputs"] == PartitionSpec(None, ("data", "fsdp"))


def test_the_axis_of_seeds_is_split_over_nothing():
    one = abstract(jcl.replay(24, size=8), optax.adamw(1e-3))
    own = jax.tree.map(lambda leaf: leaf.update(shape=(8, *leaf.shape)), one[:3])
    state = one._replace(params=own[0], strategy=own[1], key=own[2])
    shardings = Placement(seeds=8, mesh="data=4,fsdp=2").state(state)
    kernel = shardings.strategy[1][0].mu["h_0"]["mlp"]["c_fc"]["kernel"]
    assert kernel.spec == PartitionSpec(None, None, "fsdp")
    assert shardings.strategy[0].items["inputs"].spec == PartitionSpec(None, "data")
    assert shardings.step.spec == PartitionSpec()
    assert not any(shardings.key.spec)


def test_what_a_mesh_does_not_divide_is_whole_and_named():
    model = jcl.models.gpt2(jcl.models.GPT2Config(61, positions=16, width=36, layers=1, heads=4))
    state = abstract(jcl.replay(25, size=8), optax.adamw(1e-3), model=model)
    placement = Placement(mesh="fsdp=8")
    assert "params/h_0/ln_1/scale" in placement.whole(state)
    assert "params/wpe" not in placement.whole(state)  # 16 positions, of a width of 36
    assert set(Placement(mesh="data=2,fsdp=4").whole(state)) == {
        "strategy/0/items/inputs", "strategy/0/items/targets",
    }  # fmt: skip
    assert Placement().whole(state)  # all on data: the memory alone


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=4", "--mesh data=4 is of 4 devices and there are 8"),
        ("data=4,model=2", "'model=2' is no axis of a mesh"),
        ("data=4,data=2", "'data=2' is no axis"),
        ("data=8.0", "'data=8.0' is no axis"),
        ("data=-8", "'data=-8' is no axis"),
        ("data=0", "'data=0' is no axis"),
        ("", "'' is no axis"),
    ],
)
def test_meshes_that_are_refused(mesh, message, tmp_path, capsys):
    with pytest.raises(InputError, match=re.escape(message)):
        Placement(16, mesh=mesh)
    out = tmp_path / "runs" / "run"
    assert main(["run", str(TINY), "--mesh", mesh, "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.parent.exists()


def test_a_batch_that_the_mesh_cannot_split_is_refused():
    with pytest.raises(
        InputError, match="A batch of 12 cannot be split over 8 devices: choose a mesh with less"
    ):
        Placement(16, 12, mesh="data=4,fsdp=2")
    Placement(12, mesh="data=2,fsdp=2,tensor=2")


def test_a_memory_is_no_parameter_whatever_its_leaves_are_called():
    params = {"inputs": (16,), "items/kernel": (4, 8), "ring": (3,)}
    assert _own("strategy/0/items/inputs", (24, 16), params) is None
    assert _own("strategy/0/ring/inputs", (2, 24, 16), params) is None
    assert _own("params/inputs", (16,), params) == "inputs"
    assert _own("strategy/1/0/mu/items/kernel", (4, 8), params) == "items/kernel"
    assert _own("strategy/1/0/mu/ring", (3,), params) == "ring"


def test_the_axes_are_in_order():
    assert read_mesh("tensor=2,fsdp=2,data=2") == {"data": 2, "fsdp": 2, "tensor": 2}
    assert Placement(mesh="fsdp=4,data=2").mesh == "data=2,fsdp=4"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on a mesh."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["run", str(TINY), "--out", str(folder), "--epochs", "1"]
    assert main([*arguments, "--mesh", "data=4,fsdp=2"]) == 0
    return folder, arguments


def test_a_run_goes_on_with_another_mesh(finished, tmp_path, capsys):
    folder, arguments = finished
    report = json.loads((folder / "report.json").read_text())
    assert json.loads((folder / "config.json").read_text())["mesh"] == "data=4,fsdp=2"
    assert report["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    other = Path(shutil.copytree(folder, tmp_path / "run"))
    (other / "report.json").unlink()
    shutil.rmtree(max((other / "checkpoints").iterdir()))  # its last task is still to come
    arguments[3] = str(other)
    assert main([*arguments, "--mesh", "fsdp=4,data=2"]) == 0
    told = capsys.readouterr()
    assert "going on from stage 2" in told.out
    assert "mesh was 'data=4,fsdp=2' and is now 'data=2,fsdp=4'" in told.err
    again = json.loads((other / "report.json").read_text())
    np.testing.assert_allclose(again["matrix"], report["matrix"], rtol=1e-5)


def test_a_state_is_made_split_and_stays_so(caplog):
    module = load_config(TINY)
    config = module.Config()
    program = Program(_build(module.build, config, 1), mesh="data=4,fsdp=2")
    state = program.initial()
    alone = jax.device_get(state.params)

    def held(state):
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves((state.params, state.strategy))
            for shard in leaf.addressable_shards
            if shard.device == jax.devices()[5]
        )

    begun = held(state)
    params, memory = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.strategy[0].items)
    )
    counters = 8  # the memory's and AdamW's
    assert begun == 5 * params / 2 + memory / 4 + counters  # params, EWC's two, AdamW's two
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING):
            for stage in range(2):
                state = jcl.start_task(state, 3)
                for call in program.calls(stage, 0, 3):
                    before = state
                    state, _ = call.function(state, *call.arguments)
                    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
                state = program.consolidate(state, program.boundary_batches(stage))
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [line for line in caplog.messages if line.startswith("Compiling jit(traced)")]
    assert len(compiled) == 2  # step and consolidate, once each
    assert held(state) == begun
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, program.abstract
    )
    # The params of a seed do not depend on the mesh.
    key_params, _ = jax.random.split(jax.random.key(config.seed))
    expected = module.model(config.width).init(key_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, expected)


def test_a_gpt2_over_all_three_axes_equals_one_device():
    model = jcl.models.gpt2(jcl.models.GPT2Config(32, positions=8, width=16, layers=1, heads=2))
    draw = np.random.default_rng(0)
    batches = [
        {name: draw.integers(0, 32, (8, 8), np.int32) for name in ("inputs", "targets")}
        for _ in range(3)
    ]
    placement = Placement(8, mesh="data=2,fsdp=2,tensor=2")
    ends = []
    for spread in (False, True):
        loss_fn = jcl.losses.causal_lm(model, chunk=32)
        loss_fn = placement.spread(loss_fn) if spread else loss_fn
        # Not Adam, which would blow rounding up to a step where a gradient is 0, as a key's bias's.
        strategy = jcl.chain(jcl.replay(16, size=8), optax.sgd(0.1, momentum=0.9))
        learner = jcl.learner(loss_fn, strategy)
        state = learner.init(jax.random.key(0), model.init(jax.random.key(1)), batches[0])
        place = batch_place = None
        if spread:
            place, batch_place = placement.state(state), placement.batch()
            state = jax.device_put(state, place)
        step = jax.jit(learner.step, out_shardings=place and (place, None))
        losses = []
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, batch_place))
            losses.append(float(metrics["total"]))
        ends.append((losses, jax.device_get((state.params, state.strategy))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)
