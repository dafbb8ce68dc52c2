"""Pages that people read: one per session, one per cohort, and the methods text behind them."""
