"""Reads run directories, and nothing else: it never imports the training code, and needs no MPI.

python -m analysis table runs/*
python -m analysis report runs/* -o runs/report
python -m analysis compare runs/digits-001 runs/digits-002
python -m analysis tail runs/digits-001
python -m analysis paper runs/paper -o runs/paper/page
"""
