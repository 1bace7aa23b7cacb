"""python -m storage_initializer."""

from storage_initializer.main import main

main()
