"""Eight host devices and quick compiling, set before the backend starts; types checked."""

import gc
import os

# Tracing makes millions of objects that live as long as the tests: looking through all of them
# again and again would take minutes.
gc.set_threshold(100_000, 20, 100)

# The tests compile hundreds of tiny programs: without LLVM's optimizations they take half the time.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
).strip()

from jaxtyping import install_import_hook

install_import_hook(
    ["jcl.losses", "jcl.memory", "jcl.metrics", "jcl.models", "jcl.probes"], "beartype.beartype"
)
