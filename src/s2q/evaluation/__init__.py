"""What was lost: metrics against the full-precision twin, and the report which shows them."""
