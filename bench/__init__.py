"""Measurements: throughput, latency, the machine's limits, and the host work of a step. One file per role; see README.md."""
