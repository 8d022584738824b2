"""The simulated server: vLLM's API, metrics and continuous batching over an explicit cost model; no GPU, no model."""
