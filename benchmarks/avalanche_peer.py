"""The other side of benchmarks/strategies.py: times Avalanche's training steps when it is asked to.

Runs in an environment of its own, with avalanche-lib 0.6 and PyTorch. For every line "METHOD" on
standard input it trains one experience twice and answers with the milliseconds of a step of the
second time.
"""

import sys
import time
import warnings

warnings.filterwarnings("ignore")

import torch  # noqa: E402

# A torchvision that was built for another PyTorch lacks these operators and would not import;
# nothing here calls them.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
    if not hasattr(torch.ops.torchvision, _name):
        _library.define(f"{_name}(Tensor x) -> Tensor")
for _name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
    if not hasattr(torch.ops.torchvision, f"_{_name}_backward"):
        _library.define(f"_{_name}_backward(Tensor x) -> Tensor")
if not hasattr(torch.ops.torchvision, "deform_conv2d"):
    _library.define("deform_conv2d(Tensor x) -> Tensor")

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset  # noqa: E402
from avalanche.training import supervised  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin  # noqa: E402

BATCH, EXAMPLES, MEMORY = 32, 3200, 1000
METHODS = ("naive", "replay", "ewc", "si", "lwf", "agem", "derpp", "mas")


class Clock(SupervisedPlugin):
    """Times the steps of an epoch, from the first batch to behind the last."""

    def before_training_epoch(self, strategy, **_):
        self.start = time.perf_counter()

    def after_training_epoch(self, strategy, **_):
        self.seconds = time.perf_counter() - self.start


def make(method):
    """(strategy, clock) of a method, with the settings that benchmarks/strategies.py has."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )  # fmt: skip
    clock = Clock()
    common = {
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "criterion": torch.nn.CrossEntropyLoss(), "train_mb_size": BATCH, "train_epochs": 1,
        "plugins": [clock], "evaluator": EvaluationPlugin(),
    }  # fmt: skip
    makers = {
        "naive": lambda: supervised.Naive(**common),
        "replay": lambda: supervised.Replay(mem_size=MEMORY, **common),
        "ewc": lambda: supervised.EWC(ewc_lambda=1.0, mode="online", decay_factor=1.0, **common),
        "si": lambda: supervised.SynapticIntelligence(si_lambda=1.0, **common),
        "lwf": lambda: supervised.LwF(alpha=1.0, temperature=2.0, **common),
        "agem": lambda: supervised.AGEM(patterns_per_exp=MEMORY // 2, sample_size=BATCH, **common),
        "derpp": lambda: supervised.DER(
            mem_size=MEMORY, batch_size_mem=BATCH, alpha=0.5, beta=0.5, **common
        ),
        "mas": lambda: supervised.MAS(lambda_reg=1.0, **common),
    }
    return makers[method](), clock


def experiences():
    """Two experiences of random examples."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for _ in range(2):
        inputs = torch.rand(EXAMPLES, 784, generator=generator)
        targets = torch.randint(0, 10, (EXAMPLES,), generator=generator)
        data = torch.utils.data.TensorDataset(inputs, targets)
        data.targets = targets.tolist()
        sets.append(_make_taskaware_classification_dataset(data, task_labels=0))
    return benchmark_from_datasets(train=sets, test=sets).train_stream


def main():
    answers, sys.stdout = sys.stdout, sys.stderr  # Avalanche prints as it goes
    stream, ready = experiences(), {}
    for line in sys.stdin:
        method = line.strip()
        if method not in ready:
            strategy, clock = make(method)
            strategy.train(stream[0], num_workers=0)
            ready[method] = strategy, clock
        strategy, clock = ready[method]
        for _ in range(2):
            strategy.train(stream[1], num_workers=0)
        print(1e3 * clock.seconds / (EXAMPLES // BATCH), file=answers, flush=True)


if __name__ == "__main__":
    main()
