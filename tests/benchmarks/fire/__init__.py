"""A gateway under fire: saturating load while its engine, Valkey and PostgreSQL are killed.

    python -m tests.benchmarks.fire --minutes 30 -o tests/benchmarks/results/fire.json

The gateway is a process of its own in keys mode, with a Valkey and a PostgreSQL of its own. Its
engine, kept alive by its own supervisor, is the stand-in of tests/outfitter/fake_engine.py, which
answers as fast as it can; with `--model DIR` it is vLLM with that model. Clients keep books: every
request that was sent has exactly one ending, and what the gateway wrote down adds up to it.
"""
