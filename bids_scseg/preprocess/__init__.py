"""From native images and cord masks to one prepared case: fit a small geometry, apply it once."""
