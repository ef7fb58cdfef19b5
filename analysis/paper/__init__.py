"""The figures of the GSpar paper from fresh runs, and a page that sets its claims beside what was measured.

python -m analysis paper RUNS... -o DIR

Records (one a run) are tuned (one a curve: the best learning rate), and placed in panels of figures. Figures and claims
both read the tuned curves, so that a number on the page is a number in a figure.
"""
