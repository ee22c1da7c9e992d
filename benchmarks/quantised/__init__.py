"""What weights of 4 and 8 bits cost in accuracy and save in time."""
