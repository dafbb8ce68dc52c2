"""Nipype interfaces: thin wrappers, one call each."""
