"""Where things are: lattices, the cord's centerline, and the one map between prepared and native space."""
