"""`python -m mixtura`: the command line where the package is on the path but not installed, as in a submitted job."""

from mixtura.platform.cli.main import main

main()
