"""`max_projection`: the brightest voxel along z."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore import memory_types
from scheduler.steps.dtypes import dtype_name, require_pixels
from scheduler.steps.separable import ALLOWANCE_BYTES


def _one_plane(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    return (1, *shape[1:]), dtype


def _two_wide_planes(shape: tuple[int, ...], _dtype: str) -> int:
    return 2 * 8 * shape[1] * shape[2]


@memory_types("numpy", workspace=ALLOWANCE_BYTES, output_like=_one_plane)
def max_projection(stack: NDArray[Any]) -> NDArray[Any]:
    """Project a [Z, Y, X] stack along z by its largest value: the result is [1, Y, X] in the same dtype.

    A NaN anywhere in a column makes its result NaN. Every implementation gives exactly the values that
    NumPy's gives. Not splittable: a block of planes has a maximum of its own.
    """
    require_pixels("max_projection", dtype_name(stack))
    out = np.empty((1, *stack.shape[1:]), stack.dtype)
    return stack.max(axis=0, keepdims=True, out=out)


@max_projection.register("cupy")
def max_projection_cupy(stack: Any) -> Any:
    """`max_projection` on CuPy arrays."""
    require_pixels("max_projection", dtype_name(stack))
    with stack.device:
        return stack.max(axis=0, keepdims=True)


@max_projection.register("torch", workspace=_two_wide_planes)
def max_projection_torch(stack: Any) -> Any:
    """`max_projection` on torch tensors; uint16 and uint32, which it can't compare, as int64."""
    import torch

    if require_pixels("max_projection", dtype_name(stack)) not in ("uint16", "uint32"):
        return torch.amax(stack, 0, keepdim=True)
    largest = stack[:1].to(torch.int64)
    for plane in stack[1:]:
        torch.maximum(largest, plane.to(torch.int64), out=largest)
    return largest.to(stack.dtype)


@max_projection.register("jax")
def max_projection_jax(stack: Any) -> Any:
    """`max_projection` on JAX arrays."""
    require_pixels("max_projection", dtype_name(stack))
    return stack.max(axis=0, keepdims=True)


@max_projection.register("tensorflow")
def max_projection_tensorflow(stack: Any) -> Any:
    """`max_projection` on TensorFlow tensors."""
    import tensorflow as tf

    require_pixels("max_projection", dtype_name(stack))
    with tf.device(stack.device):
        return tf.reduce_max(stack, axis=0, keepdims=True)


# In the stack's own dtype; only NaN differs from itself.
LARGEST_ALONG_Z = """
__constant sampler_t sampler = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP_TO_EDGE | CLK_FILTER_NEAREST;

__kernel void largest_along_z(IMAGE_src_TYPE src, IMAGE_dst_TYPE dst) {
  const int x = get_global_id(0);
  const int y = get_global_id(1);
  IMAGE_src_PIXEL_TYPE largest = READ_IMAGE(src, sampler, POS_src_INSTANCE(x, y, 0, 0)).x;
  for (int z = 1; z < GET_IMAGE_DEPTH(src); ++z) {
    const IMAGE_src_PIXEL_TYPE value = READ_IMAGE(src, sampler, POS_src_INSTANCE(x, y, z, 0)).x;
    if (value > largest || value != value) { largest = value; }
  }
  WRITE_IMAGE(dst, POS_dst_INSTANCE(x, y, 0, 0), largest);
}
"""


@max_projection.register("pyclesperanto")
def max_projection_pyclesperanto(stack: Any) -> Any:
    """`max_projection` on pyclesperanto arrays; of 32 bits by a kernel that doesn't go through float32."""
    import pyclesperanto as cle

    require_pixels("max_projection", dtype_name(stack))
    out = cle.create((1, *stack.shape[1:]), dtype=stack.dtype, device=stack.device)
    if stack.itemsize < 4:
        # float32, in which pyclesperanto compares, holds these.
        return cle.maximum_z_projection(stack, out)
    cle.execute(
        kernel_source=LARGEST_ALONG_Z,
        kernel_name="largest_along_z",
        global_size=out.shape,
        parameters={"src": stack, "dst": out},
        device=stack.device,
    )
    return out
