"""Our HTTP servers below the protocols: bytes on a socket to requests and back."""
