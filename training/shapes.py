"""Tensor shapes as types: `Float[Tensor, "batch channels height width"]`.

Images are uint8 HWC on disk and float32 NCHW in [-1, 1] in the model. The test run checks the shapes with beartype;
on a machine that has torch alone, without jaxtyping, the annotations mean nothing and cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, UInt8
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Float32 = Float64 = Int = Int64 = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "Int64", "UInt8"]
