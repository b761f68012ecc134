# SPDX-License-Identifier: Apache-2.0
"""`python -m clearway` is `clearway`."""

from clearway.cli.main import main

if __name__ == "__main__":
    main()
