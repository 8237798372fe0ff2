"""Methods that the published tables leave out, on Split MNIST: 5 tasks of two digits, one epoch.

Class-incremental with plain SGD, as configs/mnist/split.py, so that the accuracies stand beside
those of its sgd, er and joint. packnet needs the task at prediction: its scenario is the
task-incremental one, and its accuracy stands beside those. The strengths are not tuned; la_maml's
rates are its authors' for permuted MNIST, without their five passes over each batch. A fuzzy
stream is one stage without boundaries, where the methods that act at them alone are refused.

Command:  jcl run configs/mnist/methods.py --method mir --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl

BATCH = 10
AT_BOUNDARIES = (
    "herding", "l1", "rwalk", "feature_distillation", "shrink_and_perturb", "packnet",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    method: Literal[
        "ring", "class_balanced", "balanced_draw", "herding", "priority", "mir", "gss",
        "l1", "l2_initial", "rwalk", "feature_distillation", "periodic_ewc", "shrink_and_perturb",
        "packnet", "la_maml", "mer",
    ] = "class_balanced"  # fmt: skip
    stream: Literal["split", "blurry", "fuzzy"] = "split"
    buffer: int = 500
    rate: float = 0.03
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.stream == "fuzzy" and config.method in AT_BOUNDARIES:
        raise jcl.InputError(
            f"--stream fuzzy: {config.method} acts at boundaries alone, and this stream has none: "
            "take --stream blurry or split, or a method without boundaries such as periodic_ewc."
        )
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 10, scale=1 / 255))
    optimizer, capacity = optax.sgd(config.rate), config.buffer

    def replay(policy, **options):
        return [jcl.replay(policy, BATCH, **options), optimizer]

    parts = {
        "ring": lambda: replay(jcl.memory.ring(capacity)),
        "class_balanced": lambda: replay(jcl.memory.class_balanced(capacity, 10)),
        "balanced_draw": lambda: replay(jcl.memory.reservoir(capacity), draw="balanced"),
        "herding": lambda: replay(
            jcl.memory.herding(capacity, 10, model.features), insert="boundary"
        ),
        "priority": lambda: replay(jcl.memory.priority(capacity, replacement="random")),
        "mir": lambda: [jcl.mir(capacity, BATCH, 5 * BATCH, config.rate), optimizer],
        "gss": lambda: [jcl.gss(capacity, BATCH), optimizer],
        "l1": lambda: [jcl.l1(1e-3), optimizer],
        "l2_initial": lambda: [jcl.l2(1e-3, toward="initial"), optimizer],
        "rwalk": lambda: [optimizer, jcl.rwalk(1.0)],
        "feature_distillation": lambda: [jcl.feature_distillation(model.features, 0.1), optimizer],
        "periodic_ewc": lambda: [
            jcl.periodically(jcl.ewc(100.0, decay=1.0, recentre=True), every=500, batches=50),
            optimizer,
        ],
        "shrink_and_perturb": lambda: [jcl.shrink_and_perturb(0.8, 0.1, model.init), optimizer],
        "packnet": lambda: [optimizer, jcl.packnet(keep=0.5, retrain=1 / 3)],
        "la_maml": lambda: [jcl.la_maml(capacity, BATCH, 0.15, 0.3)],
        "mer": lambda: [jcl.mer(capacity, BATCH, 0.03, batches=1, within=1.0)],
    }[config.method]()
    scenario = "task" if config.method == "packnet" else "class"
    stream = jcl.data.split(jcl.data.mnist(), scenario)
    if config.stream == "blurry":
        stream = jcl.data.blurry(stream, 0.1, seed=config.seed)
    elif config.stream == "fuzzy":
        stream = jcl.data.fuzzy(stream, 0.5, seed=config.seed)
    return jcl.Experiment(
        name=f"{config.method}_{config.stream}",
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts),
        stream=stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=BATCH,
        epochs=1,
        seed=config.seed,
        boundary_batches=200 if config.method == "herding" else 1,
        evaluation_batch_size=1000,
        log_every=200,
        device_data=True,
    )
