"""What an engine does, on any platform. No tensor framework is imported here."""
