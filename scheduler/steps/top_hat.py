"""The white top-hat on pyclesperanto for integers of 32 bits, which its own kernels round to float32.

Not for fewer bits, which float32 holds: PoCL 3.1 (LLVM 14) was seen to compile loops that pick the extreme of
8- or 16-bit values into wrong vector code.
"""

from typing import Any

SAMPLER = """
__constant sampler_t sampler = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP_TO_EDGE | CLK_FILTER_NEAREST;
"""

# A window that ends with the slice has the extremes of one over repeated edges: an edge is in it already.
EXTREME_IN_WINDOW = (
    SAMPLER
    + """
__kernel void extreme_in_window(IMAGE_src_TYPE src, IMAGE_dst_TYPE dst, const int reach, const int largest) {
  const int x = get_global_id(0);
  const int y = get_global_id(1);
  const int z = get_global_id(2);
  const int here = ALONG_X ? x : y;
  const int side = ALONG_X ? GET_IMAGE_WIDTH(src) : GET_IMAGE_HEIGHT(src);
  const int last = min(side - 1, here + reach);
  IMAGE_src_PIXEL_TYPE extreme = READ_IMAGE(src, sampler, POS_src_INSTANCE(x, y, z, 0)).x;
  for (int place = max(0, here - reach); place <= last; ++place) {
    const IMAGE_src_PIXEL_TYPE value =
        READ_IMAGE(src, sampler, POS_src_INSTANCE(ALONG_X ? place : x, ALONG_X ? y : place, z, 0)).x;
    if (largest ? value > extreme : value < extreme) { extreme = value; }
  }
  WRITE_IMAGE(dst, POS_dst_INSTANCE(x, y, z, 0), extreme);
}
"""
)

DIFFERENCE = (
    SAMPLER
    + """
__kernel void difference(IMAGE_src_TYPE src, IMAGE_opened_TYPE opened, IMAGE_dst_TYPE dst) {
  const int x = get_global_id(0);
  const int y = get_global_id(1);
  const int z = get_global_id(2);
  const IMAGE_src_PIXEL_TYPE value = READ_IMAGE(src, sampler, POS_src_INSTANCE(x, y, z, 0)).x;
  const IMAGE_opened_PIXEL_TYPE background =
      READ_IMAGE(opened, sampler, POS_opened_INSTANCE(x, y, z, 0)).x;
  WRITE_IMAGE(dst, POS_dst_INSTANCE(x, y, z, 0), value - background);
}
"""
)


def pyclesperanto_top_hat(stack: Any, reach: int, out: Any) -> Any:
    """Fill `out` with the stack less its opening by windows of 2 * reach + 1 in y and x, and return it.

    `stack` and `out` are two uint32 arrays of one shape on one device; a work array of that size is made.
    """
    import pyclesperanto as cle

    opened = cle.create(stack.shape, dtype=stack.dtype, device=stack.device)
    source = stack
    for largest in (0, 1):
        for along_x, target in ((1, out), (0, opened)):
            cle.execute(
                kernel_source=EXTREME_IN_WINDOW,
                kernel_name="extreme_in_window",
                global_size=stack.shape,
                parameters={"src": source, "dst": target, "reach": reach, "largest": largest},
                constants={"ALONG_X": along_x},
                device=stack.device,
            )
            source = target
    cle.execute(
        kernel_source=DIFFERENCE,
        kernel_name="difference",
        global_size=stack.shape,
        parameters={"src": stack, "opened": opened, "dst": out},
        device=stack.device,
    )
    return out
