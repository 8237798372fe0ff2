"""Does the main job do what it is for? Every method of the quickstart over three seeds.

Command:  python benchmarks/quickstart.py [--out runs/claims] [--seeds 3] [--methods naive ...]
Stopped, the same command goes on where it was. Prints the runs side by side and, for each claim,
the two numbers it compares and whether it holds; the exit status is 1 if one does not.
"""

import argparse
import sys
from pathlib import Path

from jcl import report
from jcl.__main__ import main as jcl

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.py"
METHODS = ("naive", "replay", "ewc", "replay_ewc", "joint", "cumulative")


def mean(reports, method, metric):
    return reports[method]["metrics"][metric]["mean"]


def claims(reports):
    """(what, left, right) for each claim left <= right that the methods at hand allow."""

    def forgetting(method):
        return mean(reports, method, "forgetting")

    def final(method):
        return mean(reports, method, "average_accuracy")

    both, naive = "replay_ewc", "naive"
    table = [
        ("replay+EWC forgets at most a sixth of naive", (both, naive),
         lambda: (forgetting(both), forgetting(naive) / 6)),
        ("EWC alone forgets at most half of naive", ("ewc", naive),
         lambda: (forgetting("ewc"), forgetting(naive) / 2)),
        ("replay+EWC forgets less than replay alone", (both, "replay"),
         lambda: (forgetting(both), forgetting("replay"))),
        ("replay+EWC ends with fewer bits than replay alone", (both, "replay"),
         lambda: (final(both), final("replay"))),
        ("naive is the worst end", (both, "replay", "ewc", naive),
         lambda: (max(final(both), final("replay"), final("ewc")), final(naive))),
        ("joint is the best end", (both, "replay", "ewc", "joint"),
         lambda: (final("joint"), min(final(both), final("replay"), final("ewc")))),
    ]  # fmt: skip
    return [(what, *sides()) for what, needs, sides in table if set(needs) <= set(reports)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/claims")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments, settings = parser.parse_known_args()
    for method in arguments.methods:
        status = jcl(
            ["run", str(CONFIG), "--method", method, "--seeds", str(arguments.seeds),
             "--out", f"{arguments.out}/{method}", *settings]
        )  # fmt: skip
        if status:
            return status
    print()
    jcl(["report", *(f"{arguments.out}/{method}" for method in arguments.methods)])
    reports = {method: report.read(Path(arguments.out) / method) for method in arguments.methods}
    broken = 0
    for what, left, right in claims(reports):
        holds = left <= right
        broken += not holds
        print(f"{'holds' if holds else 'FAILS':6} {what}: {left:.3f} <= {right:.3f}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
