"""A file per API: what it makes of a request, and how it words the answer."""
