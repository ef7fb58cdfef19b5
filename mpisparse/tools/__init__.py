"""What one does with checkpoints beside training: look at them, check, thin out, reshape and export. No MPI is started.

command   the command line, `mpisparse checkpoint`
listing   the checkpoints of a run
contents  what one holds
prune     which ones go
export    a plain torch file of a model
"""
