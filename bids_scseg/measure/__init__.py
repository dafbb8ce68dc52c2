"""Numbers: lesion instances and their statistics, session and cohort tables, overlap metrics."""
