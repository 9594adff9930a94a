"""The tests: one file per module of bot/, and one suite per seam in contracts/.

fakes/ stand at the seams and pass the same contracts; adapters/ run the platforms' real
libraries against loopback servers; golden/ holds the network against published numbers;
reliability/ breaks things on purpose.  What needs minutes has a command of its own in the
Makefile.
"""
