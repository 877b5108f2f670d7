"""What clients send: a file per API, and what they share in base.py."""
