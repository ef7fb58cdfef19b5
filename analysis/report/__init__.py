"""The report of any runs: scaling, phases, bytes, learning, and models of what was not measured.

python -m analysis report RUNS... -o DIR

Runs are read in brief, grouped in studies (what may be compared), and each study makes a section with its figures.
"""
