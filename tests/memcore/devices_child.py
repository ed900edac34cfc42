# ruff: noqa: E402  the devices are configured before the libraries load
"""Several devices in one process without a GPU: JAX host devices, TensorFlow logical CPUs, PoCL devices."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"
os.environ["POCL_DEVICES"] = "pthread pthread"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# PoCL before TensorFlow, as its LLVM crashes the process the other way round.
import pyclesperanto as cle  # isort: skip
import jax  # isort: skip
import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)

import memcore
from memcore.registry import backend_of

CURRENT = cle.get_device().index
VALUES = np.arange(2 * 3 * 5, dtype=np.uint16).reshape(2, 3, 5)
COUNTS = {"jax": 3, "tensorflow": 3, "pyclesperanto": 2}


def own_index(name, array):
    """Where the library itself says the array is."""
    if name == "jax":
        return next(iter(array.devices())).id
    if name == "tensorflow":
        return int(array.backing_device.rpartition(":")[2])
    return array.device.index


def own_values(name, array):
    return array.get() if name == "pyclesperanto" else np.asarray(array)


for name, count in COUNTS.items():
    indices = [d.gpu_id for d in backend_of(name).devices() if d.gpu_id != "cpu"]
    assert indices == list(range(count)), (name, indices)
    for origin in range(count):
        array = memcore.convert_memory(VALUES, "numpy", name, origin)
        assert memcore.device_of(array) == origin == own_index(name, array), (name, origin)
        for goal in range(count):
            for copy in (None, True):
                moved = memcore.convert_memory(array, name, name, goal, copy=copy)
                assert memcore.device_of(moved) == goal == own_index(name, moved), (name, origin, goal)
                assert (moved is array) == (origin == goal and copy is None)
                np.testing.assert_array_equal(own_values(name, moved), VALUES)
                views = [backend_of(name).host_view(a) for a in (array, moved)]
                if copy and views[0] is not None:
                    assert not np.shares_memory(*views), (name, origin, goal)
            assert memcore.device_of(memcore.move_to_device(array, goal)) == goal
        stack = memcore.stack_slices(memcore.unstack_slices(array, name, origin), name, origin)
        assert own_index(name, stack) == origin
        np.testing.assert_array_equal(own_values(name, stack), VALUES)
    for wrong in (count, -1, None, True):
        with pytest.raises(memcore.ConversionDeviceError, match=repr(wrong)):
            memcore.convert_memory(VALUES, "numpy", name, wrong)
    print(name, count, "devices")

for source, target in [
    ("jax", "tensorflow"),
    ("tensorflow", "jax"),
    ("pyclesperanto", "jax"),
    ("jax", "pyclesperanto"),
]:
    array = memcore.convert_memory(VALUES, "numpy", source, 1)
    there = memcore.convert_memory(array, source, target, 1)
    assert memcore.device_of(there) == 1 == own_index(target, there)
    np.testing.assert_array_equal(own_values(target, there), VALUES)
    back = memcore.convert_memory(there, target, source, 0)
    assert memcore.device_of(back) == 0 == own_index(source, back)
    np.testing.assert_array_equal(own_values(source, back), VALUES)

# Mixed devices in one stack land on the one that was asked for.
planes = [memcore.convert_memory(plane, "numpy", "jax", index) for index, plane in enumerate(VALUES)]
assert memcore.device_of(memcore.stack_slices(planes, "jax", 2)) == 2
assert memcore.device_of(memcore.convert_memory(VALUES, "numpy", "jax", "cpu")) == 0

# A deferred stack stays on the device that it is on.
waiting = memcore.Deferred(memcore.convert_memory(VALUES, "numpy", "jax", 2))
doubled = waiting.then(memcore.FunctionStep(lambda stack: stack * 2, input="jax", name="double"))
assert doubled.plan().conversions == ()
assert memcore.device_of(doubled.value()) == 2
np.testing.assert_array_equal(doubled.value("numpy"), VALUES * 2)

# What a step gives back on another device breaks its contract.
step = memcore.FunctionStep(
    lambda stack: jax.device_put(stack, jax.devices()[2]), input="jax", name="wanders"
)
with pytest.raises(memcore.ContractError, match="on device 1 and gave one back on device 2"):
    step(memcore.convert_memory(VALUES, "numpy", "jax", 1))
assert cle.get_device().index == CURRENT
print("moves are real")
