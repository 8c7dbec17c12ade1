"""Labels in files to soft targets in files: .npy, .npz, .csv and .parquet, in batches, however long they are."""

from labelsmooth.files.smooth import Smoothed, smooth_file

__all__ = ["Smoothed", "smooth_file"]
