"""What a model wants (recipe) and what a session has (study), as plain typed data."""
