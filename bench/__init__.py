"""Measurements: throughput, latency, roofline, and the host work of a step."""
