"""Training: from prepared cases, or tissue maps and real cords, to a model bundle."""
