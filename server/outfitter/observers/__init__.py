"""Those who are told of every relayed request: metrics, logs, traces, usage."""
