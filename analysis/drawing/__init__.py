"""Figures as data, and the pictures and tables that are made of them."""
