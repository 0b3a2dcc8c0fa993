"""What a judge learns from, and how it is trained."""
