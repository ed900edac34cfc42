"""The arithmetic of the dtype rules, over any array API namespace.

Each rule takes (namespace, values, source, target) and returns the converted values and a mask of those that
it can't keep, or None if it keeps all. Dtypes are names. The values of a masked element are undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Result: TypeAlias = tuple[Any, Any]

FLOATS = ("bfloat16", "float16", "float32", "float64")
COMPLEX = {"complex64": "float32", "complex128": "float64"}
# Greatest finite value of each floating type; exact in double precision.
GREATEST = {
    "bfloat16": 3.3895313892515355e38,
    "float16": 65504.0,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}


def applies_on_device(rule: str, source: str, target: str) -> bool:
    """True if the arithmetic needs nothing that device libraries lack (uint64, bfloat16, complex parts)."""
    missing = {"uint64", "bfloat16", *COMPLEX} | ({"int64"} if rule == "rescale" else set())
    return not {source, target} & missing


def exact(xp: Any, values: Any, source: str, target: str) -> Result:
    """Every value unchanged; NaN and infinities pass between floating types."""
    if source in COMPLEX and target not in COMPLEX:
        real, bad = exact(xp, values.real, COMPLEX[source], target)
        lost = values.imag != 0
        return real, lost if bad is None else bad | lost
    if target in COMPLEX:
        return _complex(exact, xp, values, source, target)
    if source in FLOATS and target in FLOATS:
        result = xp.astype(values, _dtype(xp, target))
        wide, back = _double(xp, values), _double(xp, result)
        return result, (wide != back) & (wide == wide)
    if source in FLOATS:
        wide = _double(xp, values)
        whole = _in_range(wide, target) & (xp.round(wide) == wide)
        return xp.astype(xp.where(whole, wide, xp.zeros_like(wide)), _dtype(xp, target)), ~whole
    wide = _integers(xp, values, source)
    if target in FLOATS:
        result = xp.astype(wide, _dtype(xp, target))
        back = _double(xp, result)
        fits = _in_range(back, source)
        again = xp.astype(xp.where(fits, back, xp.zeros_like(back)), wide.dtype)
        return result, ~(fits & (again == wide))
    low, high = _common_range(source, target)
    outside = None if (low, high) == integer_range(source) else (wide < low) | (wide > high)
    return xp.astype(wide, _dtype(xp, target)), outside


def saturate(xp: Any, values: Any, source: str, target: str) -> Result:
    """Round half to even, clip to the finite range."""
    if source in COMPLEX and target not in COMPLEX:
        return exact(xp, values, source, target)
    if target in COMPLEX:
        return _complex(saturate, xp, values, source, target)
    if source in FLOATS and target not in FLOATS:
        wide = _double(xp, values)
        return _rounded(xp, wide, target), wide != wide
    if source in FLOATS:
        wide = _double(xp, values)
        return _limited(xp, xp.astype(values, _dtype(xp, target)), wide, target), None
    wide = _integers(xp, values, source)
    if target == "float16":
        # The only floating type that integers overflow.
        return _limited(xp, xp.astype(wide, xp.float16), _double(xp, wide), target), None
    if target in FLOATS:
        return xp.astype(wide, _dtype(xp, target)), None
    low, high = _common_range(source, target)
    return xp.astype(xp.clip(wide, low, high), _dtype(xp, target)), None


def rescale(xp: Any, values: Any, source: str, target: str) -> Result:
    """The full range of the source onto that of the target, linearly."""
    if source in FLOATS:
        wide = _double(xp, values)
        bad = ~((wide >= 0.0) & (wide <= 1.0))
        if target in FLOATS:
            return xp.astype(values, _dtype(xp, target)), bad
        low, high = integer_range(target)
        return _rounded(xp, wide * float(high - low) + float(low), target), bad
    span = _span(source)
    if target in FLOATS:
        raised = _raised(xp, values, source, source)
        wide = _double(xp, raised)
        # By an array: XLA turns a division by a constant into a product with its rounded inverse.
        return xp.astype(wide / xp.full_like(wide, float(span)), _dtype(xp, target)), None
    raised = _raised(xp, values, source, target)
    out_span = _span(target)
    if out_span >= span:
        scaled = raised * xp.full_like(raised, out_span // span)
    else:
        # The factor is odd: no quotient lies half way between two integers.
        factor = span // out_span
        whole = raised // xp.full_like(raised, factor)
        rest = raised - whole * xp.full_like(raised, factor)
        scaled = whole + xp.astype(rest > factor // 2, raised.dtype)
    return _lowered(xp, scaled, target), None


RULES: dict[str, Callable[[Any, Any, str, str], Result]] = {
    "exact": exact,
    "saturate": saturate,
    "rescale": rescale,
}


def integer_range(name: str) -> tuple[int, int]:
    """Least and greatest value of an integer type; bool is 0 to 1."""
    if name == "bool":
        return 0, 1
    info = np.iinfo(name)
    return int(info.min), int(info.max)


def _span(name: str) -> int:
    low, high = integer_range(name)
    return high - low


def _common_range(source: str, target: str) -> tuple[int, int]:
    low, high = integer_range(source)
    out_low, out_high = integer_range(target)
    return max(low, out_low), min(high, out_high)


def _complex(rule: Callable[..., Result], xp: Any, values: Any, source: str, target: str) -> Result:
    """The rule on real and imaginary part; complex values are always on the host."""
    part = COMPLEX[target]
    result = np.zeros(values.shape, target)
    result.real, bad = rule(xp, values.real, COMPLEX.get(source, source), part)
    if source in COMPLEX:
        result.imag, worse = rule(xp, values.imag, COMPLEX[source], part)
        bad = worse if bad is None else bad if worse is None else bad | worse
    return result, bad


def _dtype(xp: Any, name: str) -> Any:
    """The namespace's dtype; NumPy's lacks bfloat16, and calls it by name."""
    own = getattr(xp, "dtype_named", None)
    return own(name) if own is not None else getattr(xp, name)


def _double(xp: Any, values: Any) -> Any:
    return xp.astype(values, xp.float64)


def _integers(xp: Any, values: Any, source: str) -> Any:
    """As 64-bit integers, which every namespace can compare and clip."""
    return values if source == "uint64" else xp.astype(values, xp.int64)


def _in_range(wide: Any, target: str) -> Any:
    """Mask of doubles that an integer type holds. float(2**64 - 1) is 2**64, which it doesn't."""
    low, high = integer_range(target)
    top = float(high)
    return (wide >= float(low)) & ((wide <= top) if int(top) == high else (wide < top))


def _limited(xp: Any, result: Any, wide: Any, target: str) -> Any:
    """Finite values that became infinite, at the finite limit."""
    there = _double(xp, result)
    lost = (there - there != 0.0) & (wide - wide == 0.0)
    top = xp.astype(xp.full_like(wide, GREATEST[target]), result.dtype)
    return xp.where(lost, xp.where(wide > 0.0, top, -top), result)


def _rounded(xp: Any, wide: Any, target: str) -> Any:
    """Doubles rounded half to even into an integer type and clipped; NaN becomes 0."""
    low, high = integer_range(target)
    nearest = xp.round(wide)
    over, under = nearest >= float(high), nearest <= float(low)
    inside = xp.where(over | under | (wide != wide), xp.zeros_like(nearest), nearest)
    whole = xp.astype(inside, xp.uint64 if target == "uint64" else xp.int64)
    whole = xp.where(over, xp.full_like(whole, high), xp.where(under, xp.full_like(whole, low), whole))
    return xp.astype(whole, _dtype(xp, target))


def _raised(xp: Any, values: Any, source: str, target: str) -> Any:
    """Integers raised so that the least is 0, in a type that holds both spans."""
    low, _ = integer_range(source)
    if "64" not in source + target:
        return xp.astype(values, xp.int64) - low
    # Modulo 2**64: a negative number less the least one is what it should be.
    wide = xp.astype(values, xp.uint64)
    return wide + xp.full_like(wide, -low)


def _lowered(xp: Any, raised: Any, target: str) -> Any:
    """Integers from 0 back to the target's own range."""
    low, _ = integer_range(target)
    if low:
        raised = xp.astype(raised - xp.full_like(raised, -low), xp.int64)
    return xp.astype(raised, _dtype(xp, target))
