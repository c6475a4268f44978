"""ONNX models: their weights, their graph as a torch network that can be calibrated, and the files back again."""
