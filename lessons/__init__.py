"""The learning path: nanochat rewritten by yourself, step by step, on a laptop. `README.md` is its index.

A lesson is a folder `NN_name/`: a notebook, a start, hints, a check that turns from red to green, a solution, and a
journal page. `python -m lessons` drives them, in a folder of the learner's own.
"""
