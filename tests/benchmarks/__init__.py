"""Figures that are promised, measured: ``python -m tests.benchmarks [NAME ...] [--out FOLDER]``.

Each module measures one thing and says whether its promise holds. Benchmarks are not tests: they
depend on the machine, take minutes, and are run by people.
"""
