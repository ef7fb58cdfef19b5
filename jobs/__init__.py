"""Runs on clusters: job scripts, site files, and `python -m jobs` for studies. See docs/cluster.md.

It runs from a checkout, and is no part of the installed package.
"""
