"""How well the models segment: alone, pooled, federated, under privacy, by each recipe.

``python -m tests.benchmarks.accuracy`` does the runs of ``plan.RUNS`` that ``results/`` does not
hold yet, until its hours are over, and then writes the table and the curves of what is there. A
run is one method, one recipe and one seed; its file says what it was and what came of it, so that
anybody can do it again. All of a seed's runs see the same patients, scans and held-out cases.
"""
