"""See the package."""

from tests.integration.generations import main

main()
