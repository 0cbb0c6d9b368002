"""Watching a training: TensorBoard, a gallery of all methods, reports in one HTML file."""
