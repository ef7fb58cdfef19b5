"""Models of step times: what they say about rank counts that were not measured, and how well they say it."""
