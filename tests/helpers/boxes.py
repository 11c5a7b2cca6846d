"""Boxes of views in the forms that tests compare."""

import numpy as np

from pipelines.batch import Boxes


def whole_boxes(windows: np.ndarray) -> Boxes:
    """Views that show all of their windows [B, 4], not mirrored."""
    inside = np.concatenate([np.zeros((len(windows), 2)), windows[:, 2:]], axis=1)
    return Boxes(windows, inside, np.zeros(len(windows), np.int32))


def box_rows(boxes: Boxes) -> np.ndarray:
    """float64 [B, 5]: x, y, w, h on the stored image, and whether it is flipped."""
    corners = boxes.windows[:, :2] + boxes.insides[:, :2]
    return np.column_stack([corners, boxes.insides[:, 2:], boxes.flips])
