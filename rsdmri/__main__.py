"""`python -m rsdmri` is the command `rsdmri`."""

from rsdmri.cli import main

main()
