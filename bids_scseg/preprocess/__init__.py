"""From native images and cord masks to one prepared case: fit a small geometry, apply it once."""

#: Version of what a network is shown: raised whenever fit, apply or normalisation of the same images and cord
#: masks give a network other numbers. Recorded in every model; models of another version give a warning.
PREPARATION_VERSION = 1
