"""`redirector watch`: hears what others do to the kernel's tables, and puts back what they took. `loop` tells how."""
