"""What sparsification costs and where it pays, measured on the machine at hand: `mpisparse bench`."""
