"""Synthetic spinal cords: anatomy, lesions, contrasts, scanner and the demo dataset."""

#: Raised whenever the same seed gives other images or another truth; frozen test sets name the version that
#: draws them.
GENERATOR_VERSION = 2
#: The same for lesions in real scans (`implanted`).
IMPLANT_VERSION = 1
