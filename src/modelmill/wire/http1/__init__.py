"""HTTP/1.1 over httptools, with a fast path for requests whose head is known."""
