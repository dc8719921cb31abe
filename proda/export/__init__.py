"""Networks as files for other runtimes: ONNX and torch.export, verified against the network, and their latency."""
