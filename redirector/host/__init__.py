"""What the host says of itself: addresses, listeners, processes; and network namespaces to work in."""
