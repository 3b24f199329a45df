"""Speed and memory of mithridate beside hand-written loops: ``python -m benchmarks --help``."""
