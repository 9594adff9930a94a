"""Fault injection: one module per figure R1 to R17, and what they share."""
