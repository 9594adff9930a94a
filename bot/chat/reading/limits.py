"""Bounds of a picture that a model gets, which the process that makes it and the one that takes it share."""

# Of its sides and its area: models cut it into patches, and each is a token or a few.
LONGEST_SIDE = 1568
MOST_PIXELS = 2**20
MOST_PICTURE_BYTES = 384 * 2**10
