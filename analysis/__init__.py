"""Reads run directories, and nothing else: it never imports the training code, and needs no MPI.

python -m analysis table runs/*
python -m analysis paper runs/paper -o runs/paper/page
"""
