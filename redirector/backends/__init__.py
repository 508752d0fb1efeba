"""Ways into the kernel, one package or module each; see `base`."""
