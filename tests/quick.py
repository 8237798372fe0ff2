"""How the tests, and the programs they start, compile: quickly.

The tests compile thousands of tiny programs. Without LLVM's optimizations they take half the time,
and without XLA's fusion emitters, which go through MLIR, a third of that.
"""

import jaxlib

FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_gpu_deterministic_ops=true",  # as jcl run --deterministic
]
if tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11):  # which has no other emitters
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
FLAGS = " ".join(FLAGS)
