"""Engines: a local vLLM under a guard, its log, the stand-in, and the probes that run inside it."""
