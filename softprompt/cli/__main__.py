"""`python -m softprompt.cli`, for environments where the script is not on the path."""

from softprompt.cli.main import main

main()
