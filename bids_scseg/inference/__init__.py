"""Trained models as files, and their application to prepared cases."""
