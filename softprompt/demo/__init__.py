"""`softprompt demo`: the life of one prompt on this machine, explained while it happens. Each claim is checked."""
