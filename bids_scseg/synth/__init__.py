"""Synthetic spinal cords: anatomy, lesions, contrasts, scanner and the demo dataset."""
