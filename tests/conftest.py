"""Eight host devices and quick compiling, set before the backend starts; types checked."""

import gc
import os
from pathlib import Path

import quick

# Tracing makes millions of objects that live as long as the tests: looking through all of them
# again and again would take minutes.
gc.set_threshold(100_000, 20, 100)

os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", quick.FLAGS)
).strip()

import jax
from jaxtyping import install_import_hook

install_import_hook(
    ["jcl.losses", "jcl.memory", "jcl.metrics", "jcl.models", "jcl.probes"], "beartype.beartype"
)

# Every compiled program takes some dozen maps of memory, of which Linux gives a process 65,530;
# beyond them compiling ends in a segmentation fault.
MOST_MAPS = 20_000


def pytest_runtest_teardown(item, nextitem):
    """Lets go of all compiled programs where there are many, but between groups of tests alone."""
    maps = Path("/proc/self/maps")
    if nextitem is None or _group(item) == _group(nextitem) or not maps.exists():
        return
    with maps.open() as lines:
        if sum(1 for _ in lines) < MOST_MAPS:
            return
    for module in {each.module for each in item.session.items if hasattr(each, "module")}:
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):  # functools.cache of compiled functions
                function.cache_clear()
    jax.clear_caches()
    gc.collect()


def _group(item):
    mark = item.get_closest_marker("xdist_group")
    return (item.path, mark and mark.args)
