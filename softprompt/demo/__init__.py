"""`softprompt demo`: one prompt's whole life on this machine, told while it happens, with its promises checked on the way."""
