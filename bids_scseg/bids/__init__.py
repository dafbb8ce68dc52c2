"""What a BIDS dataset has and what is written back: intake, plan, names and atomic writing."""
