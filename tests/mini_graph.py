"""A network of as few layers as there can be: what building and exporting cost is their number."""

from __future__ import annotations

from typing import Any

MINI: dict[str, Any] = {
    "nc": 80,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45], [116, 90, 156, 198]],
    "backbone": [[-1, 1, "Conv", [8 * 2**level, 3, 2]] for level in range(5)],
    "head": [[[2, 3, 4], 1, "Detect", ["nc", "anchors"]]],
}
