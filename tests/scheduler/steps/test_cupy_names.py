"""The CuPy implementations, run with NumPy under CuPy's name: their logic, on a machine without a GPU.

This shows that names, arguments and the order of buffers are right; what CuPy computes is for `-m gpu`.
"""

import subprocess
import sys

STAND_IN = """
import sys, types
import numpy as np
import scipy.ndimage

cupy = types.ModuleType("cupy")
cupy.__dict__.update({name: getattr(np, name) for name in dir(np) if not name.startswith("__")})
scipy_part = types.ModuleType("cupyx.scipy")
scipy_part.ndimage = scipy.ndimage
sys.modules.update({"cupy": cupy, "cupyx": types.ModuleType("cupyx"), "cupyx.scipy": scipy_part})
sys.modules["cupyx.scipy.ndimage"] = scipy.ndimage

class Device:
    entered = 0
    def __enter__(self):
        Device.entered += 1
    def __exit__(self, *exception):
        pass

class Array(np.ndarray):
    device = Device()

from scheduler.steps.resolve import resolve_step

CASES = [
    ("gaussian", {"sigma": 2.0}), ("gaussian", {"sigma": [0, 2.0, 1]}), ("gaussian", {"sigma": [0, 0, 1]}),
    ("gaussian", {"sigma": 0}), ("subtract_background", {"radius": 5}), ("max_projection", {}),
    ("rescale_intensity", {"percentiles": [1, 99]}), ("rescale_intensity", {"in_range": [1, 99]}),
    ("richardson_lucy", {"sigma": 1.0, "iterations": 4}),
    ("richardson_lucy", {"sigma": [0, 1.0, 1], "iterations": 4}),
]
for dtype in ("uint16", "float32"):
    values = np.random.default_rng(0).integers(0, 4000, (5, 31, 43)).astype(dtype)
    for use, keywords in CASES:
        step = resolve_step(use, with_=keywords).step
        expected = step.implementation_for("numpy").function(values, **keywords)
        given = values.copy().view(Array)
        before = Device.entered
        result = step.implementation_for("cupy").function(given, **keywords)
        assert Device.entered > before, f"{use} works on whatever device is current"
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(result), expected, err_msg=use)
        np.testing.assert_array_equal(np.asarray(given), values, err_msg=use)
"""


def test_cupys_implementations_do_what_numpys_do() -> None:
    done = subprocess.run([sys.executable, "-c", STAND_IN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
