"""The same work on other engines, each in an environment of its own, side by side with this one; see README.md."""
